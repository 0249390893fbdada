"""Checkpoints of this project: reading them safely, and saying in one line what does not fit.

A checkpoint is Lightning's file with one entry more, `model_config`: the sizes of the codec and the decoder. Every
reading is `weights_only=True`, so that nothing in a file can run.
"""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aeic_lightning import UserError
from aeic_lightning.codec import CodecConfig
from aeic_lightning.decoder import DecoderConfig
from aeic_lightning.model import AEIC


def read_checkpoint(path: str | Path, role: str = "checkpoint") -> dict[str, Any]:
    """The contents of a checkpoint on the CPU; `role` names its part in the messages.

    Raises UserError when it is missing, damaged, or not of this project.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{role}: no file {path}; train it first or correct the path")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
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
    try:
        return from_dict(CodecConfig, config["codec"]), from_dict(DecoderConfig, config["decoder"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} has sizes that this version does not know ({error}); use the version that wrote it"
        ) from error


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """A config dataclass from plain values, nested ones included."""
    kinds = {field.name: field.type for field in fields(cls)}
    return cls(**{k: from_dict(kinds[k], v) if is_dataclass(kinds[k]) else v for k, v in values.items()})


def load_model(path: str | Path, role: str = "checkpoint") -> AEIC:
    """The trained model in evaluation mode, its prior's quantiles solved anew."""
    checkpoint = read_checkpoint(path, role)
    model = AEIC(*model_configs(checkpoint, path))
    load_strictly(model, with_prefix(checkpoint, "model."), path, role)
    model.codec.prior.update_quantiles()
    return model.eval()


def with_prefix(checkpoint: dict[str, Any], prefix: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose names start with `prefix`, which is cut off."""
    state = checkpoint["state_dict"]
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def load_strictly(module: nn.Module, state: dict[str, Tensor], path: str | Path, role: str) -> None:
    """Load every tensor, or raise UserError naming the first that does not fit, before anything is changed."""
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
    module.load_state_dict(state)
