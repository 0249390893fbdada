"""Ladders: a trunk at a constant rate, and a branch that decays from each rung."""

from pathlib import Path

import pytest
import torch

from aeic_lightning.cli import main
from aeic_lightning.errors import UserError
from aeic_lightning.study.results import read_result
from aeic_lightning.study.sweep_file import Sweep, labelled, read_sweep
from aeic_lightning.systems import OptimizationConfig

ROOT = Path(__file__).parents[2]
SMALL = (
    "data.init_args.crop_size=128",
    "data.init_args.batch_size=1",
    "data.init_args.val_max_size=[128,192]",
    "vars.save_every=1",
    "vars.val_every=100",
    "model.init_args.codec.widths=[16,16,16,32,32]",
    "model.init_args.codec.depths=[1,1,1,1,1]",
    "model.init_args.codec.context_width=32",
    "model.init_args.codec.synthesis_widths=[32,24,16]",
    "model.init_args.decoder.unet.widths=[16,16,16,16]",
    "model.init_args.optimization.warmup_steps=1",
)


def ladder(folder: Path, rungs: str = "rungs: [2, 4], decay: 0.5", grid: str = "seed: [0]", extra: str = "") -> Sweep:
    (folder / "sweep.yaml").write_text(
        f"vars: {{root: {folder}/runs}}\nroot: ${{vars.root}}\nthreads: 1\nruns:\n"
        f"- {{name: 'a_seed={{seed}}', grid: {{{grid}}}, set: {{vars.seed: '{{seed}}', vars.steps: 1}}, {rungs},"
        f" config: {ROOT}/experiments/tiny/teacher_stage1.yaml}}\n{extra}"
    )
    return read_sweep(folder / "sweep.yaml", [f"set.{word}" for word in SMALL])


def test_each_point_has_a_trunk_in_pieces_and_a_branch_at_each_rung(tmp_path):
    runs = ladder(tmp_path, grid="seed: [0, 1]").runs
    names = [f"a_seed={seed}_{part}={rung}" for rung in (2, 4) for seed in (0, 1) for part in ("trunk", "rung")]
    assert [run.name for run in runs] == names, "all points at one rung before the next one"
    by_name = {run.name: run for run in runs}
    needs = {"trunk=2": [], "rung=2": ["trunk=2"], "trunk=4": ["trunk=2"], "rung=4": ["trunk=4"]}
    for piece, before in needs.items():
        run = by_name[f"a_seed=1_{piece}"]
        assert run.needs == [f"a_seed=1_{name}" for name in before]
        starts = [str(by_name[need].folder / "checkpoints" / "last.ckpt") for need in run.needs]
        assert run.command[-2:] == ["--ckpt_path", *starts] if starts else "--ckpt_path" not in run.command
    assert [run.resolved()["trainer"]["max_steps"] for run in runs] == [2, 3, 2, 3, 4, 6, 4, 6]
    assert [run.settings.get("model.init_args.labels.rung") for run in runs[:2]] == [None, 2]
    assert [run.name for run in labelled(runs, {"rung": 4})] == [names[5], names[7]]
    assert not any(run.trunk for run in labelled(runs, {})), "a trunk is no result"


def test_the_rate_falls_in_a_line_to_zero_after_the_last_step():
    """In exact thirds here: of 12 updates the last two have 2/3 and 1/3 of the rate, and one more would have none."""
    settings = OptimizationConfig(learning_rates=[(0, 0.3)], decay_steps=2, warmup_steps=4)
    settings.check()
    rates = [settings.learning_rate(step, 12) for step in range(13)]
    assert rates[:4] == pytest.approx([0.075, 0.15, 0.225, 0.3])
    assert rates[4:10] == [0.3] * 6
    assert rates[10:] == pytest.approx([0.2, 0.1, 0.0])
    with pytest.raises(UserError, match="decay_steps is a number of updates of schedule: constant, not 2"):
        OptimizationConfig(schedule="cosine", learning_rates=[(0, 0.3)], decay_steps=2).check()


@pytest.mark.slow
def test_a_branch_is_the_run_that_decayed_there_bit_for_bit(tmp_path):
    """Against one run of the whole schedule, with all its images looked at on the way. Apart: from which checkpoint a
    piece goes on, above; that it then is the longer run, in systems/test_extended_runs.py."""
    sweep = ladder(tmp_path)
    for run in sweep.runs:
        assert main(run.command[3:]) == 0
    whole = sweep.runs[3]
    words = [f"--{word}" for word in whole.overrides] + ["--vars.name=whole", "--vars.val_every=3"]
    assert main(["fit", "--config", str(whole.config), *words]) == 0
    ours, theirs = read_result(whole.folder), read_result(tmp_path / "runs" / "whole")
    assert ours.step == theirs.step == 6
    assert ours.images == theirs.images
    assert ours.labels == theirs.labels
    weights, others = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (whole.folder, tmp_path / "runs" / "whole")
    )
    assert all(torch.equal(others[name], value) for name, value in weights.items())
    assert read_result(sweep.runs[1].folder).step == 3
    assert not (sweep.runs[0].folder / "metrics_val.json").exists()


@pytest.mark.parametrize(
    ("rungs", "extra", "message"),
    [
        ("rungs: [4, 2]", "", "a_seed={seed}: rungs are numbers of updates that rise"),
        ("rungs: [2, 2]", "", "rungs are numbers of updates that rise"),
        ("rungs: [0.5]", "", "rungs are numbers of updates that rise"),
        ("rungs: 5", "", "rungs are numbers of updates that rise"),
        ("rungs: [2], decay: 0", "", "decay is a share of a rung's updates, as 0.25, not 0"),
        ("decay: 0.5", "", "decay is of branches; say rungs"),
        ("rungs: [2]", "compare: {runs: ['a_seed=0_trunk=2']}", "compare names a_seed=0_trunk=2"),
    ],
)
def test_an_impossible_ladder_is_said_in_words(tmp_path, rungs, extra, message):
    with pytest.raises(UserError) as error:
        ladder(tmp_path, rungs, extra=extra)
    assert message in str(error.value)
