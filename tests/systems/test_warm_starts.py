"""Warm starts say what they took, take what they are told to, and are refused where next to nothing fits."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import seed_everything

from aeic_lightning.checkpoints.checkpoint import load_model
from aeic_lightning.config.run_record import RunRecord
from aeic_lightning.errors import UserError
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.random_model import save
from aeic_lightning.systems import OptimizationConfig, StudentSystem
from aeic_lightning.systems.start import StartFrom

OWN = {"class_path": "tests.models.plain_encoder.PlainEncoder", "init_args": {"width": 8}}


@pytest.fixture
def earlier(codec_config, decoder_config, tmp_path) -> Path:
    """A checkpoint of the sizes of `codec_config`, whose entropy model had 500 updates."""
    path = tmp_path / "earlier.ckpt"
    save(AEIC(codec_config, decoder_config), path)
    checkpoint = torch.load(path, weights_only=True) | {"rate_updates": 500}
    torch.save(checkpoint, path)
    return path


def start(codec_config, decoder_config, **arguments) -> tuple[StudentSystem, dict[str, torch.Tensor]]:
    """A student after its start, and its initial weights."""
    seed_everything(1, verbose=False)
    system = StudentSystem(codec_config, decoder_config, {"mse": 1.0}, OptimizationConfig(), **arguments)
    before = {name: value.clone() for name, value in system.model.state_dict().items()}
    system.load_start()
    return system, before


def same(system, tensors) -> set[str]:
    """Names of the model's tensors that equal these."""
    return {name for name, value in system.model.state_dict().items() if torch.equal(value, tensors[name])}


def stored(path) -> dict[str, torch.Tensor]:
    return {k.removeprefix("model."): v for k, v in torch.load(path, weights_only=True)["state_dict"].items()}


def test_a_new_encoder_starts_from_the_rest_of_an_earlier_model(codec_config, decoder_config, earlier, capsys):
    only = ["codec.h_a", "codec.prior", "codec.h_s", "codec.context", "codec.g_s", "decoder"]
    own = replace(codec_config, widths=None, depths=None, encoder=OWN)
    system, before = start(own, decoder_config, init_from={"path": str(earlier), "only": only})
    theirs = stored(earlier) | {"codec.prior.quantiles": load_model(earlier).prior.quantiles}
    named = {name for name in before if name.startswith(tuple(f"{path}." for path in only))}
    assert named == {name for name in theirs if not name.startswith("codec.g_a.")}
    assert all(torch.equal(system.model.state_dict()[name], theirs[name]) for name in named)
    assert all(torch.equal(system.model.state_dict()[name], before[name]) for name in before.keys() - named)
    assert system.earlier_rate_updates == 500
    assert f"init_from: {earlier}: {len(named)} of {len(named)} tensors" in capsys.readouterr().err
    (entry,) = system.started_from
    h_s = sum(name.startswith("codec.h_s.") for name in theirs)
    assert (entry["role"], entry["path"], entry["tensors"]["codec.h_s"]) == ("init_from", str(earlier), [h_s, h_s])


def test_a_start_without_the_entropy_model_counts_none_of_its_updates(codec_config, decoder_config, earlier):
    system, _ = start(codec_config, decoder_config, init_from=StartFrom(str(earlier), ["decoder", "codec.g_a"]))
    assert system.earlier_rate_updates == 0


def test_what_does_not_fit_is_named_and_nothing_is_changed(codec_config, decoder_config, earlier):
    narrow = replace(codec_config, widths=[8, 8, 8, 16, 16])
    with pytest.raises(UserError, match=r"only: the model has no weights in 'codec\.h_z'.*codec\.h_"):
        start(codec_config, decoder_config, init_from={"path": str(earlier), "only": ["codec.h_z"]})
    with pytest.raises(UserError, match=r"init_from: .* holds codec\.h_a.* asks for .*partial: true"):
        start(narrow, decoder_config, init_from={"path": str(earlier), "only": ["codec.h_a"]})
    with pytest.raises(UserError, match="write a path, or"):
        start(codec_config, decoder_config, init_from={"path": str(earlier), "parts": ["codec"]})
    system, before = start(narrow, decoder_config, init_from={"path": str(earlier), "partial": True})
    counts, theirs = system.started_from[0]["tensors"], stored(earlier)
    fit = {name for name in before if before[name].shape == theirs[name].shape}
    assert sum(taken for taken, _ in counts.values()) == len(fit) < len(before)
    assert fit <= same(system, theirs) | {"codec.prior.quantiles"}
    assert before.keys() - fit <= same(system, before)


def test_a_receiver_of_which_next_to_nothing_fits_is_refused(codec_config, decoder_config, earlier, capsys):
    """Refused where less than half of g_s fits, and said with counts where it is wanted."""
    other = replace(codec_config, synthesis_widths=[40, 40, 40])
    with pytest.raises(UserError, match=r"only \d+ of \d+ tensors of codec\.g_s fit; .*partial: true"):
        start(other, decoder_config, receiver_from=str(earlier))
    system, before = start(other, decoder_config, receiver_from={"path": str(earlier), "partial": True})
    theirs = stored(earlier)
    g_s = {name for name in before if name.startswith("codec.g_s.")}
    fit = {name for name in g_s if name in theirs and theirs[name].shape == before[name].shape}
    assert system.started_from[0]["tensors"]["codec.g_s"] == [len(fit), len(g_s)]
    assert 0 < 2 * len(fit) < len(g_s)
    assert f"(codec.g_s {len(fit)} of {len(g_s)})" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"use init_from: \{path, only\}"):
        start(codec_config, decoder_config, receiver_from={"path": str(earlier), "only": ["decoder"]})


def test_the_record_of_a_run_has_the_counts(codec_config, decoder_config, earlier, tmp_path):
    system, _ = start(codec_config, decoder_config, init_from=str(earlier))
    (tmp_path / "run.json").write_text(json.dumps({"seed": 3}))
    record = object.__new__(RunRecord)
    record.on_fit_start(SimpleNamespace(default_root_dir=str(tmp_path)), system)
    found = json.loads((tmp_path / "run.json").read_text())
    assert found["seed"] == 3
    assert found["started_from"] == json.loads(json.dumps(system.started_from))
    assert sum(total for _, total in found["started_from"][0]["tensors"].values()) == len(system.model.state_dict())
