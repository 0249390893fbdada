"""Checkpoints of this project: reading them safely, and saying in one line what does not fit.

A checkpoint is Lightning's file with one entry more, `model_config`: the sizes of the codec and the decoder. Every
reading is `weights_only=True`, so that nothing in a file can run. Where the decoder has a pretrained base, a checkpoint
holds only what is trained over it, and the fingerprints of that base: `model_config["base"]`.
"""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from aeic_lightning.errors import UserError
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.codec.entropy import FactorizedPrior
from aeic_lightning.models.decoder import DecoderConfig, PretrainedConfig


def read_checkpoint(path: str | Path, role: str = "checkpoint", mmap: bool = False) -> dict[str, Any]:
    """The contents of a checkpoint on the CPU; `role` names its part in the messages.

    With `mmap` the tensors stay in the file until they are used, so that looking at one costs next to nothing.

    Raises UserError when it is missing, damaged, or not of this project.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{role}: no file {path}; train it first or correct the path")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch raises many kinds for a damaged or a foreign file
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(
            f"{role}: {path} cannot be read as a checkpoint ({reason}); it is damaged or no checkpoint"
        ) from error
    if not isinstance(checkpoint, dict) or "model_config" not in checkpoint or "state_dict" not in checkpoint:
        raise UserError(f"{role}: {path} is not a checkpoint of aeic_lightning; give one that `fit` wrote")
    return checkpoint


def model_configs(checkpoint: dict[str, Any], path: str | Path) -> tuple[CodecConfig, DecoderConfig]:
    """The sizes that a checkpoint was trained with."""
    config = checkpoint["model_config"]
    if "analysis" in config:
        raise UserError(
            f"{path} is a compress-and-classify model, not an AEIC; compress, decompress and classify take it"
        )
    try:
        return from_dict(CodecConfig, config["codec"]), from_dict(DecoderConfig, config["decoder"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} has sizes that this version does not know ({error}); use the version that wrote it"
        ) from error


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """A config dataclass from plain values, nested ones included."""
    kinds = {field.name: field.type for field in fields(cls)}

    def convert(kind: Any, value: Any) -> Any:
        # `Config | None` stands for an optional part.
        nested = next((part for part in (kind, *get_args(kind)) if is_dataclass(part)), None)
        return from_dict(nested, value) if nested and isinstance(value, dict) else value

    return cls(**{name: convert(kinds.get(name), value) for name, value in values.items()})


def load_model(
    path: str | Path, role: str = "checkpoint", receiver: bool = True, base: PretrainedConfig | None = None
) -> AEIC:
    """The trained model in evaluation mode, its prior's tails solved anew.

    Args:
        path: the checkpoint.
        role: its part in the messages.
        receiver: without it a pretrained base is not read, nor needed: the codec works, the decoder does not. A sender
            needs no more.
        base: where the base weights lie, instead of where they lay in training; they must be the same ones.
    """
    checkpoint = read_checkpoint(path, role)
    codec, decoder = model_configs(checkpoint, path)
    if base and decoder.pretrained:
        decoder.pretrained = replace(decoder.pretrained, unet=base.unet, vae=base.vae)
    model = AEIC(codec, decoder)
    if receiver:
        model.decoder.load_base()
        check_base(model, checkpoint, path, role)
    load_strictly(model, with_prefix(checkpoint, "model."), path, role)
    solve_prior(model.codec.prior, checkpoint)
    return model.eval()


def solve_prior(prior: FactorizedPrior, checkpoint: dict[str, Any]) -> None:
    """The quantiles of a prior whose weights were loaded."""
    medians = prior.quantiles[:, 1].clone()
    prior.update_quantiles()
    if checkpoint.get("imported"):
        # The released medians need not fit the density, but they are the grid that the model was trained on.
        prior.quantiles[:, 1] = medians


def check_base(model: AEIC, checkpoint: dict[str, Any], path: str | Path, role: str) -> None:
    """Raise UserError where the base that `model` has loaded is not the one that the checkpoint was trained on."""
    theirs, ours = checkpoint["model_config"].get("base"), model.decoder.base_fingerprints
    if not theirs or not ours:
        return
    names = model.decoder.config.pretrained
    for part, name in (("unet", names.unet), ("vae", names.vae)):
        if theirs[part] != ours[part]:
            raise UserError(
                f"{role}: {path} was trained on a {part} with fingerprint {theirs[part]}, but {name} has "
                f"{ours[part]}; give the base that it was trained on"
            )


def with_prefix(checkpoint: dict[str, Any], prefix: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose names start with `prefix`, which is cut off."""
    state = checkpoint["state_dict"]
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def load_strictly(module: nn.Module, state: dict[str, Tensor], path: str | Path, role: str) -> None:
    """Load every tensor, or raise UserError naming the first that does not fit, before anything is changed."""
    check_fits(module, state, path, role)
    module.load_state_dict(state)


def check_fits(module: nn.Module, state: dict[str, Tensor], path: str | Path, role: str) -> None:
    """Raise UserError naming the first tensor that `module` lacks, that `state` lacks, or of another shape."""
    own = module.state_dict()
    for name, tensor in own.items():
        if name not in state:
            raise UserError(f"{role}: {path} has no {name}; it was trained with another model")
        if state[name].shape != tensor.shape:
            raise UserError(
                f"{role}: {path} holds {name} as {list(state[name].shape)}, the config asks for {list(tensor.shape)}; "
                "use the config it was trained with"
            )
    extra = next((name for name in state if name not in own), None)
    if extra is not None:
        raise UserError(f"{role}: {path} holds {extra}, which the config's model does not have")
