"""Import of the released checkpoints into this project's format.

One of AEIC (https://github.com/LuizScarlet/AEIC) is a pickle of two state dicts: `state_dict_codec`, and
`state_dict_unet` with LoRA, conv_in and conv_out alone. The other kinds of models (`checkpoint.OTHER_KINDS`) recognise
their own files. All are read with `weights_only=True`.
"""

import argparse
import hashlib
import os
import re
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aeic_lightning.checkpoints.checkpoint import installed_kinds
from aeic_lightning.errors import UserError
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import DecoderConfig, PretrainedConfig, TilingConfig, stable_diffusion

MODERATE = CodecConfig(
    widths=[64, 128, 192, 256, 320], depths=[2, 2, 2, 2, 2], context_width=960, context_depth=4, start="pytorch"
)  # fmt: skip
SHALLOW = CodecConfig(
    widths=[32, 64, 128, 192, 256], depths=[1, 1, 1, 1, 1], context_width=512, context_depth=3, start="pytorch"
)  # fmt: skip

# The two models of the paper, with the tiles that each is run with on large images.
RELEASED: dict[str, tuple[CodecConfig, DecoderConfig]] = {
    "AEIC-ME": (MODERATE, DecoderConfig(pretrained=PretrainedConfig(), tiling=TilingConfig())),
    "AEIC-SE": (
        SHALLOW,
        DecoderConfig(pretrained=PretrainedConfig(), tiling=TilingConfig(unet_tile=192, unet_overlap=64)),
    ),
}

# Tables of the entropy coder and bounds, which are no parameters and are computed here.
_BUFFERS = re.compile(
    r"^gaussian_conditional\.|^entropy_bottleneck\.(_offset|_quantized_cdf|_cdf_length|target|.*\.bound)$|\.bound$"
)
_RENAMED = (
    (r"^(g_a|h_a|h_s|g_s)\.(analysis_transform|reduction|increase|synthesis_transform)\.", r"\1."),
    (r"\.body\.0\.", ".conv."),
    (r"^adapter_", "context.adapter_"),
    (r"^g_c\.block\.(\d+)\.blocks\.(\d+)\.", r"context.g_c.\1.\2."),
    (r"^entropy_bottleneck\._(matrix|bias|factor)(\d)$", lambda m: f"prior.{_PLURAL[m[1]]}.{m[2]}"),
    (r"^entropy_bottleneck\.", "prior."),
)
_PLURAL = {"matrix": "matrices", "bias": "biases", "factor": "factors"}


def read_pickle(path: str | Path) -> Any:
    """The contents of a file that torch.save wrote, without running anything in it.

    Raises UserError for a missing file and for one that cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file {path}; correct the path")
    try:
        # Training scripts of transformers keep their arguments beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or a foreign file
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}); it is damaged or no released checkpoint") from error


def _halves(released: Any, path: str | Path) -> dict[str, dict[str, Tensor]]:
    """`state_dict_codec` and `state_dict_unet` of a released AEIC file. Raises UserError for any other contents."""
    for half in ("state_dict_codec", "state_dict_unet"):
        state = released.get(half) if isinstance(released, dict) else None
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise UserError(f"{path} has no {half}; it is no released checkpoint of AEIC or of compress-and-classify")
    return {half: _without_module(released[half]) for half in ("state_dict_codec", "state_dict_unet")}


def codec_state(released: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state_dict_codec` under the names of `LatentCodec`. Takes both spellings of the prior's parameters."""
    state = {}
    for name, tensor in released.items():
        if _BUFFERS.search(name):
            continue
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        # (C, 1, 3) there, with an axis of filters.
        state[name] = tensor.flatten(1) if name == "prior.quantiles" else tensor
    return state


def denoiser_state(released: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state_dict_unet` under the names of `Denoiser` in a checkpoint, which leave the adapter's name out.

    A student's file, trained beside its teacher in one U-Net, has the prefix `student_` at its own parts.
    """
    adapters = {match[1] for name in released if (match := re.search(r"\.lora_[AB]\.([^.]+)\.", name))}
    student = next((name for name in adapters if name.startswith("student")), None)
    if len(adapters) > 1 and student is None:
        raise UserError(f"its U-Net has several adapters ({', '.join(sorted(adapters))}) and none is a student's")
    adapter = student or next(iter(adapters), "default")
    ends = "student_" if student else ""
    state = {}
    for name, tensor in released.items():
        if f".{adapter}." in name:
            state["trunk." + name.replace(f".{adapter}.", ".")] = tensor
        elif name.startswith((f"{ends}conv_in.", f"{ends}conv_out.")):
            state[name.removeprefix(ends)] = tensor
        elif ".lora_" not in name and not name.startswith(("conv_in.", "conv_out.")):
            raise UserError(f"its U-Net holds {name}, which is neither LoRA nor conv_in nor conv_out")
    return state


def convert(
    released: dict[str, dict[str, Tensor]], candidates: dict[str, tuple[CodecConfig, DecoderConfig]] = RELEASED
) -> tuple[str, dict[str, Tensor]]:
    """Which of the candidates a released file is, and its tensors under the names of `AEIC`.

    Raises UserError naming the first tensor that does not match the nearest candidate.
    """
    state = {f"codec.{name}": tensor for name, tensor in codec_state(released["state_dict_codec"]).items()}
    unet = denoiser_state(released["state_dict_unet"])
    state |= {f"decoder.denoiser.{name}": tensor for name, tensor in unet.items()}
    problems = {name: _mismatches(state, *configs) for name, configs in candidates.items()}
    nearest = min(problems, key=lambda name: len(problems[name]))
    if problems[nearest]:
        count = len(problems[nearest])
        raise UserError(f"it is not {nearest}: {problems[nearest][0]}" + (f" ({count} in all)" if count > 1 else ""))
    return nearest, {name: tensor.float() for name, tensor in state.items()}


def _mismatches(state: dict[str, Tensor], codec: CodecConfig, decoder: DecoderConfig) -> list[str]:
    with torch.device("meta"):
        expected = AEIC(codec, decoder).state_dict()
    found = []
    for name, tensor in expected.items():
        if name not in state:
            found.append(f"{name} is missing")
        elif state[name].shape != tensor.shape:
            found.append(f"{name} is {list(state[name].shape)}, not {list(tensor.shape)}")
    return found + [f"{name} is unknown" for name in state if name not in expected]


def import_released(
    path: str | Path,
    out: str | Path,
    base: PretrainedConfig | None = None,
    candidates: dict[str, tuple[CodecConfig, DecoderConfig]] = RELEASED,
) -> tuple[str, bool]:
    """Write a released file as a checkpoint of this project, from which `init_from`, `teacher`, `test` and all the
    commands can start.

    Args:
        path: the released file.
        out: the checkpoint; written whole or not at all.
        base: where AEIC's base weights lie, if not where the defaults look.
        candidates: the AEIC models that it may be.

    Returns its name, and whether the base was available (only AEIC needs one): its digest is then recorded, and
    another one refused. Raises UserError, with what did not match, for any other file.
    """
    path, out = Path(path), Path(out)
    contents = read_pickle(path)
    other = next((kind for kind in installed_kinds() if kind.module("released").recognises(contents)), None)
    halves = {} if other else _halves(contents, path)
    try:
        if other:
            name, (config, state) = other.name, other.module("released").convert(contents)
        else:
            name, state = convert(halves, candidates)
            config = _config(*candidates[name], base)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    checkpoint = {
        "state_dict": {f"model.{key}": tensor for key, tensor in state.items()},
        "model_config": config,
        "imported": {"model": name, "file": path.name, "sha256": digest},
        # What Lightning asks of every checkpoint.
        "pytorch-lightning_version": version("lightning"),
        "epoch": 0,
        "global_step": 0,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        torch.save(checkpoint, beside)
        os.replace(beside, out)
    finally:
        beside.unlink(missing_ok=True)
    return name, other is not None or config["base"] is not None


def _config(codec: CodecConfig, decoder: DecoderConfig, base: PretrainedConfig | None) -> dict[str, Any]:
    config: dict[str, Any] = {"codec": asdict(codec), "decoder": asdict(decoder)}
    if base:
        # A path is made absolute, so that the checkpoint serves from any folder.
        names = {"unet": base.unet, "vae": base.vae}
        paths = {part: Path(name).expanduser() for part, name in names.items()}
        names |= {part: str(path.resolve()) for part, path in paths.items() if path.exists()}
        config["decoder"]["pretrained"] |= names
    config["base"] = _base_digests(decoder, config["decoder"]["pretrained"])
    return config


def _base_digests(decoder: DecoderConfig, names: dict[str, Any]) -> dict[str, str] | None:
    try:
        stable_diffusion.locate(names["unet"], "U-Net")
        stable_diffusion.locate(names["vae"], "VAE decoder")
    except UserError:
        return None
    return {
        "unet": stable_diffusion.weights_digest(stable_diffusion.read_unet(names["unet"], decoder.unet)),
        "vae": stable_diffusion.weights_digest(stable_diffusion.read_vae_decoder(names["vae"])),
    }


def _without_module(state: dict[str, Tensor]) -> dict[str, Tensor]:
    # What DistributedDataParallel puts before every name.
    if state and all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state
