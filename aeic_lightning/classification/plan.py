"""What an experiment with classes needs before it is run: `study.plan` for the systems of this package."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from aeic_lightning.checkpoints.checkpoint import from_dict, model_configs, read_checkpoint
from aeic_lightning.classification.checkpoint import build_head
from aeic_lightning.classification.model import ClassificationConfig, ClassificationModel
from aeic_lightning.classification.system import ClassificationSystem
from aeic_lightning.classification.transformer import TransformerConfig
from aeic_lightning.errors import UserError
from aeic_lightning.losses.objective import Described
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.study.plan import Kept, Plan, add_terms, find_missing, part


def fill(plan: Plan, config: dict[str, Any], file: Any, terms: list[Described], x: torch.Tensor) -> None:
    """Add the parts of an experiment's model, its activations for images `x` on the meta device, and its missing files.

    Raises UserError for settings that cannot be.
    """
    model, settings = config["model"], config["model"]["init_args"]
    if model["class_path"].rsplit(".", 1)[-1] == ClassificationSystem.__name__:
        try:
            sizes = from_dict(ClassificationConfig, settings.get("sizes") or {})
        except TypeError as error:
            raise UserError(f"{file}: {error}; --print_config lists the settings") from error
        with torch.device("meta"):
            net = ClassificationModel(sizes)
        plan.parts += [
            part("codec", net.codec), part("transformer", net.transformer), part("aggregation", net.aggregation),
            part("decoder", net.g_s),
        ]  # fmt: skip
        _activations(plan, "model", net, x, any(term.entry.name == "rate" for term in terms))
    else:
        _head(plan, settings, x)
    add_terms(plan, terms, x)
    find_missing(plan, config, None, terms)
    weights = (settings.get("teacher") or {}).get("weights")
    if weights and not Path(weights).expanduser().is_file():
        plan.missing.append(f"teacher.weights: no file {weights}; fetch the weights of the timm model")
    checkpoint = (settings.get("teacher") or {}).get("checkpoint")
    if checkpoint and not Path(checkpoint).is_file():
        plan.missing.append(f"teacher.checkpoint: no file {checkpoint}; train that model first (`fit`)")


def _head(plan: Plan, settings: dict[str, Any], x: torch.Tensor) -> None:
    """A head on AEIC, whose sizes are those of the codec's checkpoint."""
    path = settings["init_from"]
    if not Path(path).is_file():
        plan.assumptions.append(f"the codec {path} is not there, so neither it nor its head is counted")
        return
    codec, decoder = model_configs(read_checkpoint(path, "init_from"), path)
    trains, reads = settings.get("train_codec", False), settings.get("reads", "y_hat")
    sizes = from_dict(TransformerConfig, settings.get("head") or {})
    with torch.device("meta"):
        net = AEIC(codec, decoder).requires_grad_(trains)
        head = build_head(reads, net.codec.channels, sizes, settings.get("picture_widths") or [128, 128, 128, 192])
    plan.parts += [part("codec", net.codec), part("decoder", net.decoder), part("head", head)]
    if trains:
        _activations(plan, "model", net, x)
    taken = (
        x
        if reads == "x_hat"
        else x.new_empty(len(x), net.codec.channels, *(s // net.codec.stride for s in x.shape[2:]))
    )
    _activations(plan, "head", head, taken)


def _activations(plan: Plan, name: str, module: nn.Module, x: torch.Tensor, *more: Any) -> None:
    kept = Kept(module.train())
    with kept.counting():
        module(x, *more)
    plan.activations[name] = float(kept.size)
