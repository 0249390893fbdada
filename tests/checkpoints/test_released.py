"""Import of released checkpoints: both models in full by name and shape, a small one by value, and what is refused."""

import pickle
import re
from dataclasses import replace
from pathlib import Path

import lightning
import pytest
import torch
from small_release import as_released

from aeic_lightning import cli
from aeic_lightning.checkpoints.checkpoint import load_model, read_checkpoint
from aeic_lightning.checkpoints.released import RELEASED, convert, import_released
from aeic_lightning.errors import UserError
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.decoder import DecoderConfig, PretrainedConfig, UNetConfig
from aeic_lightning.systems import OptimizationConfig, TeacherSystem
from aeic_lightning.systems.start import StartFrom, load_stage

KEYS = Path(__file__).parents[1] / "conformance" / "data"


def released_keys(file: str) -> dict[str, torch.Tensor]:
    """A half of a released checkpoint by the recorded list of its keys; zeros without storage."""
    rows = (line.split("\t") for line in (KEYS / file).read_text().splitlines())
    return {name: torch.empty(tuple(map(int, shape.split("x"))), device="meta") for name, shape in rows}


def full(model: str) -> dict[str, dict[str, torch.Tensor]]:
    codec = released_keys(f"keys_codec_{model}.tsv")
    return {"state_dict_codec": codec, "state_dict_unet": released_keys("keys_unet_trained.tsv")}


def newer_prior(state: dict) -> dict:
    plural = {"matrix": "matrices", "bias": "biases", "factor": "factors"}
    return {
        re.sub(r"\._(matrix|bias|factor)(\d)$", lambda m: f".{plural[m[1]]}.{m[2]}", name): tensor
        for name, tensor in state.items()
    }


def as_student(state: dict) -> dict:
    return {
        (f"student_{name}" if name.startswith("conv_") else name.replace(".default.", ".student_unet_lora.")): tensor
        for name, tensor in state.items()
    }


@pytest.mark.parametrize(
    ("keys", "name", "prior", "unet"),
    [("me", "AEIC-ME", dict, dict), ("se", "AEIC-SE", dict, as_student), ("se", "AEIC-SE", newer_prior, dict)],
)
def test_every_released_tensor_has_its_place(keys, name, prior, unet):
    """All names and shapes of the released files, in each of their spellings."""
    released = full(keys)
    released = {
        "state_dict_codec": prior(released["state_dict_codec"]),
        "state_dict_unet": unet(released["state_dict_unet"]),
    }
    found, state = convert(released)
    assert found == name
    assert len(state) == sum(map(len, released.values()))
    assert sum(t.numel() for t in state.values()) == sum(t.numel() for half in released.values() for t in half.values())


# ---------------------------------------------------------------------- a small one, by value


@pytest.fixture
def candidates(codec_config, decoder_config):
    pretrained = PretrainedConfig(unet="nowhere", vae="nowhere", rank=4, alpha=1.0)
    unet = UNetConfig(widths=[8, 16], heads=[1, 2], layers=1, groups=4)
    decoder = replace(decoder_config, unet=unet, pretrained=pretrained)
    moderate = replace(codec_config, depths=[2, 2, 2, 2, 2])
    return {"small ME": (moderate, decoder), "small SE": (codec_config, decoder)}


@pytest.fixture
def model(candidates) -> AEIC:
    model = AEIC(*candidates["small SE"])
    for p in model.parameters():
        if not p.is_meta:
            torch.nn.init.normal_(p, std=0.1)
    model.codec.prior.quantiles[:, 1] = torch.randn(model.codec.prior.channels)
    return model


@pytest.fixture
def file(tmp_path, model) -> Path:
    torch.save(as_released(model), tmp_path / "released.pkl")
    return tmp_path / "released.pkl"


def test_imported_model_is_the_released_one(file, model, candidates, tmp_path):
    assert import_released(file, tmp_path / "ours.ckpt", candidates=candidates) == ("small SE", False)
    imported = load_model(tmp_path / "ours.ckpt", receiver=False)
    x = torch.rand(1, 3, 128, 128) * 2 - 1
    ours, theirs = imported.codec(x), model.eval().codec(x)
    for name in ("y", "z", "phi", "y_hat", "l_T", "l_res", "bits_y", "bits_z"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    state = imported.decoder.state_dict()
    for name, tensor in model.decoder.state_dict().items():
        assert torch.equal(state[name], tensor), name


def test_released_medians_are_kept(file, model, candidates, tmp_path):
    """They are the rounding grid of the released model, though no fit to its density; the tails are solved anew."""
    import_released(file, tmp_path / "ours.ckpt", candidates=candidates)
    prior = load_model(tmp_path / "ours.ckpt", receiver=False).codec.prior
    assert torch.equal(prior.medians, model.codec.prior.medians)
    assert not torch.equal(prior.quantiles[:, 0], model.codec.prior.quantiles[:, 0])


def test_imported_checkpoint_serves_lightning_and_the_next_stage(file, candidates, tmp_path, decoder_config):
    """`--ckpt_path` and `init_from` take it. (A decoder that needs no base stands in for the one that does.)"""
    import_released(file, tmp_path / "ours.ckpt", candidates=candidates)
    checkpoint = read_checkpoint(tmp_path / "ours.ckpt")
    codec, _ = candidates["small SE"]
    system = TeacherSystem(codec, decoder_config, {"rate": 0.8, "mse": 2.0}, OptimizationConfig())
    decoder = {f"model.decoder.{name}": t for name, t in system.model.decoder.state_dict().items()}
    state = {name: t for name, t in checkpoint["state_dict"].items() if ".decoder." not in name}
    path = tmp_path / "whole.ckpt"
    torch.save(checkpoint | {"state_dict": state | decoder, "model_config": system.model.config}, path)
    images = torch.utils.data.DataLoader([{"image": torch.zeros(3, 128, 128), "name": "x"}])
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, limit_val_batches=0
    )
    trainer.test(system, images, ckpt_path=path, weights_only=True, verbose=False)
    assert torch.equal(system.model.codec.g_a[0].conv.weight, state["model.codec.g_a.0.conv.weight"])
    load_stage(system, StartFrom(str(path)))


def test_digest_is_recorded_where_the_base_is_at_hand(file, candidates, tmp_path, monkeypatch):
    from aeic_lightning.checkpoints import released

    monkeypatch.setattr(released, "_base_digests", lambda decoder, names: {"unet": names["unet"], "vae": names["vae"]})
    base = PretrainedConfig(unet="here/turbo", vae="here/half.ckpt")
    _, at_hand = import_released(file, tmp_path / "ours.ckpt", base, candidates)
    config = read_checkpoint(tmp_path / "ours.ckpt")["model_config"]
    assert at_hand
    assert config["base"] == {"unet": "here/turbo", "vae": "here/half.ckpt"}
    assert config["decoder"]["pretrained"] == {"unet": "here/turbo", "vae": "here/half.ckpt", "rank": 4, "alpha": 1.0}


# ---------------------------------------------------------------------- what is refused


def refused(path, tmp_path, candidates=RELEASED) -> str:
    with pytest.raises(UserError) as error:
        import_released(path, tmp_path / "ours.ckpt", candidates=candidates)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ours.ckpt").exists()
    return str(error.value)


def altered(file, change) -> None:
    released = torch.load(file)
    change(released["state_dict_codec"], released["state_dict_unet"])
    torch.save(released, file)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda codec, unet: codec.pop("h_a.reduction.0.body.0.weight"), "codec.h_a.0.conv.weight is missing"),
        (
            lambda codec, unet: codec.update({"adapter_in.1.branch2.bias": torch.ones(3)}),
            "codec.context.adapter_in.1.branch2.bias is [3], not [16]",
        ),
        (lambda codec, unet: codec.update({"g_x.weight": torch.ones(1)}), "codec.g_x.weight is unknown"),
        (lambda codec, unet: unet.pop("conv_out.bias"), "decoder.denoiser.conv_out.bias is missing"),
        (
            lambda codec, unet: unet.update({"time_embedding.weight": torch.ones(1)}),
            "U-Net holds time_embedding.weight",
        ),
        (lambda codec, unet: codec.clear(), " in all)"),
    ],
)
def test_what_did_not_match_is_named(file, candidates, tmp_path, change, expected):
    altered(file, change)
    assert expected in refused(file, tmp_path, candidates)


def test_two_teachers_adapters_are_ambiguous(file, candidates, tmp_path):
    altered(file, lambda codec, unet: unet.update({"x.lora_A.other.weight": torch.ones(1)}))
    assert "several adapters (default, other)" in refused(file, tmp_path, candidates)


def test_a_students_own_adapter_is_taken(file, model, candidates, tmp_path):
    """A file of both: the teacher's adapter and ends under the plain names, the student's beside them."""

    def add_student(codec, unet):
        student = as_student(unet)
        for name in list(unet):
            unet[name] = torch.zeros_like(unet[name])
        unet.update(student)

    altered(file, add_student)
    import_released(file, tmp_path / "ours.ckpt", candidates=candidates)
    imported = load_model(tmp_path / "ours.ckpt", receiver=False)
    state = imported.decoder.state_dict()
    for name, tensor in model.decoder.state_dict().items():
        assert torch.equal(state[name], tensor), name


class Malicious:
    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"state_dict": {}}, "has no state_dict_codec"),
        ({"state_dict_codec": {}}, "has no state_dict_unet"),
        ({"state_dict_codec": {"a": 1}, "state_dict_unet": {}}, "has no state_dict_codec"),
        ([1, 2], "has no state_dict_codec"),
        (Malicious(), "cannot be read"),
    ],
)
def test_foreign_files(tmp_path, content, expected, capsys):
    torch.save(content, tmp_path / "foreign.pkl")
    assert expected in refused(tmp_path / "foreign.pkl", tmp_path)
    assert "unpickled" not in capsys.readouterr().out


def test_damaged_files(file, tmp_path):
    file.write_bytes(file.read_bytes()[:-2000])
    assert "cannot be read" in refused(file, tmp_path)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Malicious()))
    assert "cannot be read" in refused(tmp_path / "plain.pkl", tmp_path)
    assert "no file" in refused(tmp_path / "missing.pkl", tmp_path)


def test_distributed_prefix(file, tmp_path):
    """Without it and with it, the same tensor is the first that a small model has otherwise."""
    plain = refused(file, tmp_path)
    assert "codec.g_a.0.conv.weight is [2, 3, 3, 3]" in plain
    released = torch.load(file)
    torch.save({half: {f"module.{k}": t for k, t in state.items()} for half, state in released.items()}, file)
    assert refused(file, tmp_path) == plain


def test_command_refuses_in_one_line(file, tmp_path, capsys):
    """A small model is neither of the released ones."""
    assert cli.main(["import-released", str(file), "-o", str(tmp_path / "ours.ckpt")]) == 2
    message = capsys.readouterr().err
    assert message.startswith(
        f"error: {file}: it is not AEIC-SE: codec.g_a.0.conv.weight is [2, 3, 3, 3], not [8, 3, 3, 3]"
    )
    assert message.count("\n") == 1


def test_defaults_are_the_papers(tmp_path):
    """LoRA of rank 32 and alpha 8; the tiles that each model is run with."""
    for name, tile, overlap in (("AEIC-ME", 96, 32), ("AEIC-SE", 192, 64)):
        _, decoder = RELEASED[name]
        assert (decoder.pretrained.rank, decoder.pretrained.alpha) == (32, 8.0)
        assert (decoder.tiling.unet_tile, decoder.tiling.unet_overlap, decoder.tiling.vae_tile) == (tile, overlap, 160)
        assert replace(decoder, pretrained=None, tiling=None) == DecoderConfig()
