"""Checkpoints of this project: reading them safely, and saying in one line what does not fit.

A checkpoint is Lightning's file with one entry more, `model_config`: the sizes of the model. Every
reading is `weights_only=True`, so that nothing in a file can run. An encoder that is not this package's is in it by its
class path, which is imported from where Python finds it, and called only if it is a `torch.nn.Module`. Where the
decoder has a pretrained base, a checkpoint holds only what is trained over it, and the digests of that base:
`model_config["base"]`.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import torch
from torch import Tensor, nn

from aeic_lightning.checkpoints.weights import read_weights
from aeic_lightning.errors import UserError
from aeic_lightning.files import locate, missing
from aeic_lightning.models.aeic import AEIC, REALISTIC, StoredDecoder
from aeic_lightning.models.base import CompressionModel
from aeic_lightning.models.codec import CodecConfig, Stored, StoredEncoder
from aeic_lightning.models.codec.context import FactorizedPrior
from aeic_lightning.models.codec.latent_codec import LATENT_STRIDE
from aeic_lightning.models.decoder import DecoderConfig, OneStepDecoder, PretrainedConfig
from aeic_lightning.models.parts import part_class
from aeic_lightning.torch_settings import own_settings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RATE_UPDATES = "rate_updates"
"""Entry of a checkpoint: updates that trained a rate, in its stage and in those before; older ones lack it."""
FEW_RATE_UPDATES = 100
"""Below, an entropy model is as good as untrained."""


def read_checkpoint(path: str | Path, role: str = "checkpoint", mmap: bool = False) -> dict[str, Any]:
    """The contents of a checkpoint on the CPU; `role` names its part in the messages.

    `path` may also be a folder of weights, or the name of a shipped model (`checkpoints/weights.py`).

    With `mmap` the tensors stay in the file until they are used, so that looking at one costs next to nothing.

    Raises UserError when it is missing, damaged, or not of this project.
    """
    path = locate(path)
    if path.is_dir():
        return read_weights(path)
    if not path.is_file():
        raise UserError(f"{role}: {missing(path)}")
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


def warn_of_untrained_rate(path: str | Path, role: str = "checkpoint") -> None:
    """Say on standard error that a checkpoint's files will be large because its entropy model is not trained.

    Checkpoints that do not count such updates, and imported ones, say nothing. Raises as `read_checkpoint`.
    """
    updates = read_checkpoint(path, role, mmap=True).get(RATE_UPDATES)
    if updates is not None and updates < FEW_RATE_UPDATES:
        trained = f"had {updates} update(s) with a rate" if updates else "was trained without a rate"
        print(
            f"warning: {path} {trained}, so its entropy model is as good as untrained and its files are many times too "
            "large; take a checkpoint from later in a stage that has objective.rate",
            file=sys.stderr,
        )


def model_configs(
    checkpoint: dict[str, Any], path: str | Path, sender: bool = True
) -> tuple[CodecConfig, DecoderConfig]:
    """The sizes that an AEIC was trained with. Raises UserError for the checkpoint of another kind of model, and for
    an encoder that cannot be imported unless there is to be no `sender`."""
    config = checkpoint["model_config"]
    if other := other_kind(config):
        raise UserError(f"{path} is a {other.name} model, not an AEIC; compress, decompress and evaluate take it")
    try:
        codec, decoder = from_dict(CodecConfig, config["codec"]), from_dict(DecoderConfig, config["decoder"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} has sizes that this version does not know ({error}); use the version that wrote it"
        ) from error
    try:
        codec.find_parts(sender)
    except UserError as error:
        raise UserError(f"{path} was trained with a part that is not here; {error}") from error
    return codec, decoder


def _stand_in(codec: CodecConfig, checkpoint: dict[str, Any], path: str | Path) -> StoredEncoder | None:
    """What stands for an encoder whose class is not here; None where it is. Raises UserError where nothing can."""
    try:
        if codec.encoder:
            part_class(codec.encoder, "codec.encoder")
        return None
    except UserError as error:
        if codec.h_a or codec.g_s:  # by ours, the channels and the stride of y are known without the encoder
            raise UserError(f"{path} was trained with a part that is not here; {error}") from error
        channels = 2 * len(checkpoint["state_dict"]["model.codec.prior.quantiles"])
        stride = LATENT_STRIDE << (len(codec.synthesis_widths or ()) - 1)
        return StoredEncoder(with_prefix(checkpoint, "model.codec.g_a."), channels, stride, str(error))


Config = TypeVar("Config", bound="DataclassInstance")


def from_dict(cls: type[Config], values: dict[str, Any]) -> Config:
    """A config dataclass from plain values, nested ones included."""
    kinds = {field.name: field.type for field in fields(cls)}

    def convert(kind: Any, value: Any) -> Any:
        # `Config | None` stands for an optional part.
        parts = (kind, *get_args(kind))
        nested = next((part for part in parts if isinstance(part, type) and is_dataclass(part)), None)
        return from_dict(nested, value) if nested and isinstance(value, dict) else value

    return cls(**{name: convert(kinds.get(name), value) for name, value in values.items()})


@dataclass(frozen=True)
class Kind:
    """A kind of model beside AEIC, in a package of its own: the rest works without it, and imports it by name alone.

    The package has two modules: `checkpoint`, whose `build_model(model_config)` makes the model, and `released`, whose
    `recognises(contents)` and `convert(contents)` read the files of its authors.
    """

    name: str
    package: str

    def module(self, name: str) -> ModuleType:
        return import_module(f"{self.package}.{name}")

    @property
    def is_installed(self) -> bool:
        return find_spec(self.package) is not None


CLASSIFICATION = Kind("compress-and-classify", "aeic_lightning.classification")

# By the entry of `model_config` that only this kind has. "analysis" is how it was spelled first.
OTHER_KINDS = {"classification": CLASSIFICATION, "analysis": CLASSIFICATION}


def other_kind(model_config: dict[str, Any]) -> Kind | None:
    """The kind of model, if it is no AEIC. An AEIC with a classification head is an AEIC."""
    return next((kind for key, kind in OTHER_KINDS.items() if key in model_config), None)


def installed_kinds() -> Iterator[Kind]:
    """The kinds beside AEIC whose packages are there."""
    return (kind for kind in dict.fromkeys(OTHER_KINDS.values()) if kind.is_installed)


@own_settings()
def load_model(
    path: str | Path, role: str = "checkpoint", receiver: bool = True, sender: bool = True
) -> CompressionModel:
    """The trained model of a checkpoint of any kind in evaluation mode, its prior's tails solved anew.

    Args:
        path: the checkpoint.
        role: its part in the messages.
        receiver: see `load_aeic`; the other kinds are always whole.
        sender: whether it is to compress. Without, the class of an encoder of one's own need not be here.
    """
    checkpoint = read_checkpoint(path, role)
    kind = other_kind(checkpoint["model_config"])
    if kind is None:
        return _load_aeic(checkpoint, path, role, receiver, sender=sender)
    if not kind.is_installed:
        raise UserError(f"{role}: {path} is a {kind.name} model; {kind.package}, which reads it, is not installed")
    try:
        model = kind.module("checkpoint").build_model(checkpoint["model_config"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{role}: {path} holds no {kind.name} model of this version ({error}); use the version that wrote it"
        ) from error
    _fill(model, checkpoint, path, role)
    return model.eval()


def load_aeic(
    path: str | Path, role: str = "checkpoint", receiver: bool = True, base: PretrainedConfig | None = None
) -> AEIC:
    """As `load_model`, for what works with an AEIC alone. Raises UserError for another kind of model.

    Args:
        path: the checkpoint.
        role: its part in the messages.
        receiver: without it there is no decoder but its tensors: the codec works, and no picture is made. A sender
            needs no more.
        base: where the base weights lie, instead of where they lay in training; they must be the same ones.
    """
    with own_settings():
        return _load_aeic(read_checkpoint(path, role), path, role, receiver, base)


def _load_aeic(
    checkpoint: dict[str, Any],
    path: str | Path,
    role: str,
    receiver: bool,
    base: PretrainedConfig | None = None,
    sender: bool = True,
) -> AEIC:
    codec, decoder = model_configs(checkpoint, path, sender)
    encoder = None if sender else _stand_in(codec, checkpoint, path)
    realistic = checkpoint["model_config"].get("realistic", False)
    if base and decoder.pretrained:
        decoder.pretrained = replace(decoder.pretrained, unet=base.unet, vae=base.vae)
    if receiver:
        model = AEIC(codec, decoder, encoder)
        model.decoder.load_base()
        check_base(model, checkpoint, path, role)
        if realistic:
            model.realistic = OneStepDecoder(codec.l_T_channels, codec.l_res_channels, decoder)
    else:
        model = AEIC(codec, StoredDecoder(with_prefix(checkpoint, "model.decoder.")))
        if realistic:
            model.realistic = Stored(with_prefix(checkpoint, f"model.{REALISTIC}"))
    _fill(model, checkpoint, path, role)
    return model.eval()


def _fill(model: CompressionModel, checkpoint: dict[str, Any], path: str | Path, role: str) -> None:
    load_strictly(model, with_prefix(checkpoint, "model."), path, role)
    solve_prior(model.prior, checkpoint)


def solve_prior(prior: FactorizedPrior, checkpoint: dict[str, Any]) -> None:
    """The quantiles of a prior whose weights were loaded."""
    medians = prior.quantiles[:, 1].clone()
    prior.update_quantiles()
    if checkpoint.get("imported"):
        # The released medians need not fit the density, but they are the grid that the model was trained on.
        prior.quantiles[:, 1] = medians


def check_base(model: CompressionModel, checkpoint: dict[str, Any], path: str | Path, role: str) -> None:
    """Raise UserError where the base that `model` has loaded is not the one that the checkpoint was trained on."""
    theirs = checkpoint["model_config"].get("base")
    if not theirs or not isinstance(model, AEIC):
        return
    ours, names = model.decoder.base_digests, model.decoder.config.pretrained
    if not (ours and names):
        return
    for part, name in (("unet", names.unet), ("vae", names.vae)):
        if theirs[part] != ours[part]:
            raise UserError(
                f"{role}: {path} was trained on a {part} with digest {theirs[part]}, but {name} has "
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


# ---------------------------------------------------------------------- a second set of decoder weights

# One stream, a faithful picture and a realistic one. The last stage of training with an adversary moves the decoder
# alone (`optimization.freeze: [codec]`), so that both decoders read the same streams. Between the two their weights are
# interpolated (Wang et al. 2019, "Deep Network Interpolation for Continuous Imagery Effect Transition").


def add_realistic(model: AEIC, path: str | Path) -> None:
    """Give `model` the decoder of a checkpoint whose g_s and gains are its own, bit for bit.

    It replaces an earlier one. Raises UserError for another g_s or decoder, and for adapters over a pretrained base.
    """
    role = "realistic"
    if model.decoder.config.pretrained:
        raise UserError(
            f"{role}: the decoder is an adapter over a pretrained base; only whole decoders are interpolated"
        )
    other = load_aeic(path, role)
    ours, theirs = (one.decoder.state_dict() for one in (model, other))
    if {name: t.shape for name, t in ours.items()} != {name: t.shape for name, t in theirs.items()}:
        raise UserError(f"{role}: the decoder of {path} has other sizes; train it from the faithful checkpoint")
    painting = ("g_s.", "gains.")
    ours, theirs = (
        {name: tensor for name, tensor in one.codec.state_dict().items() if name.startswith(painting)}
        for one in (model, other)
    )
    moved = [name for name in ours if not (name in theirs and torch.equal(ours[name], theirs[name]))]
    if ours.keys() != theirs.keys() or moved:
        raise UserError(
            f"{role}: codec.{moved[0] if moved else min(ours.keys() ^ theirs.keys())} of {path} is not the model's, so "
            "its decoder paints from other features; train it with init_from and optimization.freeze: [codec]"
        )
    model.realistic = other.decoder
