"""A frozen base that is spread over processes: the same run, with half of the base in each of two."""

from pathlib import Path

import pytest
import torch
from small_release import save_base, small_unet, small_vae

from aeic_lightning.errors import UserError
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.random_model import save
from aeic_lightning.systems import DistillationSystem, OptimizationConfig
from aeic_lightning.systems.sharded import check_shards
from tests.ranks import finish_ranks
from tests.systems.sharded_run import CODEC, HEADS, LOSS, WIDTHS, decoder
from tests.systems.test_compression import make


def base_and_teacher(folder: Path) -> None:
    torch.manual_seed(0)
    save_base(folder, small_unet(WIDTHS, HEADS), small_vae())
    teacher = AEIC(CODEC, decoder(folder))
    teacher.decoder.load_base()
    save(teacher, folder / "teacher.ckpt")


def test_two_processes_with_half_of_the_base_each(forked, tmp_path):
    base_and_teacher(tmp_path)
    finish_ranks(forked, tmp_path, "tests.systems.sharded_run:main", tmp_path)
    found = {name: [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in range(2)] for name in ("whole", "spread")}
    for runs in found.values():
        assert runs[0]["figures"] == runs[1]["figures"]
        for stage in ("first", "weights"):
            assert all(torch.equal(runs[0][stage][key], runs[1][stage][key]) for key in runs[0][stage]), "of both ranks"
    whole, spread = found["whole"][0], found["spread"][0]
    assert spread["figures"] == pytest.approx(whole["figures"], rel=1e-5)
    # The backward pass adds the gradients of a tensor that several layers read in another order.
    moved, apart = (
        sum((a[key] - b[key]).square().sum() for key in a if "quantiles" not in key).sqrt()
        for a, b in ((whole["weights"], whole["first"]), (whole["weights"], spread["weights"]))
    )
    assert moved > 0
    assert apart < 0.02 * moved
    shares = [run["held"] for run in found["spread"]]
    assert sum(shares) == whole["held"]
    assert max(shares) < 0.55 * whole["held"]
    ours, theirs = (torch.load(tmp_path / f"{name}/checkpoints/last.ckpt", weights_only=False) for name in found)
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    assert all(a.shape == theirs["state_dict"][key].shape for key, a in ours["state_dict"].items())


def test_a_cache_of_the_teacher_s_taps_would_let_the_processes_wait(tmp_path):
    base_and_teacher(tmp_path)
    optimization = OptimizationConfig(shard_base=True)
    system = DistillationSystem(
        CODEC,
        decoder(tmp_path),
        LOSS,
        optimization,
        str(tmp_path / "teacher.ckpt"),
        teacher_cache=str(tmp_path / "taps"),
    )
    with pytest.raises(UserError, match="teacher_cache"):
        check_shards(system)


def test_a_decoder_that_is_trained_whole_has_no_base_to_spread(codec_config, decoder_config, loader, trainer):
    with pytest.raises(UserError, match=r"shard_base spreads the frozen base of decoder\.pretrained"):
        trainer(1).fit(make(codec_config, decoder_config, shard_base=True), loader(1))
