"""Released compress-and-classify checkpoints: recognised by their parameter names, renamed to this project's."""

import re
from dataclasses import asdict
from typing import Any

import torch
from timm.data import ImageNetInfo
from torch import Tensor

from aeic_lightning.classification.model import KEY, ClassificationConfig, ClassificationModel
from aeic_lightning.classification.transformer import TransformerConfig
from aeic_lightning.errors import UserError

IMAGENET = 1000  # classes, in the order of ImageNet's folders

# Start of a released name -> start of ours; the rest of the name stays.
NAMES = {
    "patch_embed.proj.": "codec.g_a.",
    "h_a.": "codec.h_a.",
    "h_s.": "codec.h_s.",
    "entropy_bottleneck.": "codec.prior.",
    "chans_embed.": "transformer.embed.",
    "cls_token": "transformer.cls_token",
    "pos_embed": "transformer.pos_embed",
    "blocks.": "transformer.blocks.",
    "norm.": "transformer.norm.",
    "head.": "transformer.head.",
    "head_rec.proj.": "g_s.",
    "fusion.": "aggregation.merge.",
}
# What the entropy-model library keeps beside its parameters: constants, and the tables of its range coder.
_BUFFERS = re.compile(r".*\.(bound|target|scale_bound|scale_table|_quantized_cdf|_offset|_cdf_length)")


def recognises(contents: Any) -> bool:
    """Whether the contents of a file are those of a released compress-and-classify model, by the names."""
    names = {"patch_embed.proj.0.weight", "chans_embed.weight", "head_rec.proj.0.weight"}
    return isinstance(contents, dict) and names <= set(_plain(contents))


def convert(contents: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`model_config` of a checkpoint, and the tensors under the names of `ClassificationModel`.

    With 1000 classes they get ImageNet's words as names.

    The sizes are read from the shapes. How many heads there are cannot be: 64 channels make one, as in every DeiT.

    Args:
        contents: the released state dict, or the training checkpoint around it (entry `model` or `state_dict`).

    Raises:
        UserError: for other names, or shapes that make no such model.
    """
    state = _plain(contents)
    try:
        config = _sizes(state)
    except KeyError as error:
        raise UserError(f"the file lacks {error.args[0]}") from error
    renamed = {}
    for name, tensor in state.items():
        if not _BUFFERS.fullmatch(name):
            renamed[_rename(name)] = tensor.detach().float()
    if "codec.prior.quantiles" in renamed:
        renamed["codec.prior.quantiles"] = renamed["codec.prior.quantiles"].flatten(1)
    with torch.device("meta"):
        own = ClassificationModel(config).state_dict()
    for name in sorted(set(own) | set(renamed)):
        if name not in renamed or name not in own:
            where = "lacks" if name not in renamed else "holds, beyond the model,"
            raise UserError(f"the file {where} {name} (in this project's names)")
        if own[name].shape != renamed[name].shape:
            raise UserError(
                f"the file holds {name} as {list(renamed[name].shape)}, but its other shapes make it "
                f"{list(own[name].shape)}"
            )
    model_config: dict[str, Any] = {KEY: asdict(config)}
    if config.transformer.classes == IMAGENET:
        words = ImageNetInfo()
        model_config["class_names"] = [words.index_to_description(i) for i in range(IMAGENET)]
    return model_config, renamed


def _plain(contents: dict[str, Any]) -> dict[str, Tensor]:
    for key in ("model", "state_dict"):
        if isinstance(contents.get(key), dict):
            contents = contents[key]
    return {
        name.removeprefix("module."): value
        for name, value in contents.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }


def _rename(name: str) -> str:
    source = re.fullmatch(r"fusion(\d+)\.(weight|bias)", name)
    if source:
        return f"aggregation.sources.{source[1]}.{source[2]}"
    # Older entropy-model libraries spell the prior's parameters _matrix0, _bias0, _factor0.
    name = re.sub(r"\._(matri)x(\d)$", r".\1ces.\2", name)
    name = re.sub(r"\._(bias|factor)(\d)$", lambda m: f".{m[1]}{'es' if m[1] == 'bias' else 's'}.{m[2]}", name)
    for start, ours in NAMES.items():
        if name.startswith(start):
            return ours + name.removeprefix(start)
    raise UserError(f"the file holds {name}, which this project does not know")


def _sizes(state: dict[str, Tensor]) -> ClassificationConfig:
    def rows(pattern: str) -> list[Tensor]:
        found = {int(m[1]): tensor for name, tensor in state.items() if (m := re.fullmatch(pattern, name))}
        return [found[i] for i in sorted(found)]

    width = state["chans_embed.weight"].shape[0]
    positions = state["pos_embed"].shape[1] - 1
    side = round(positions**0.5)
    if side**2 != positions:
        raise UserError(f"the released position embedding has {positions} places, which make no square")
    return ClassificationConfig(
        encoder_widths=[tensor.shape[0] for tensor in rows(r"patch_embed\.proj\.(\d+)\.weight")],
        hyper_width=state["h_a.0.weight"].shape[0],
        decoder_widths=[tensor.shape[1] for tensor in rows(r"head_rec\.proj\.(\d+)\.weight")[:-1]],
        aggregate=list(range(1, len(rows(r"fusion(\d+)\.weight")))),
        transformer=TransformerConfig(
            width=width,
            depth=len(rows(r"blocks\.(\d+)\.norm1\.weight")),
            heads=max(width // 64, 1),
            mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / width,
            grid=[side, side],
            classes=state["head.weight"].shape[0],
        ),
    )
