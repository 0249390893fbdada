"""Trained models that ship inside of the package.

    >>> from aeic_lightning import zoo
    >>> codec = zoo.load("small-student")        # the same as Codec.from_pretrained("small-student")

Each is a folder here, with `config.json` (sizes, training command, results), `model.safetensors` (16-bit values) and
a model card, `README.md`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aeic_lightning.checkpoints.weights import WEIGHTS, read_config
from aeic_lightning.errors import UserError, did_you_mean
from aeic_lightning.files import shipped_models

if TYPE_CHECKING:
    from aeic_lightning.codec import Codec

DEFAULT = "small-student"
"""What `compress` takes where no model is named."""

EARLIER = {
    "0bb2": ("small-student", "77459bf"),
    "02ac": ("micro-student", "77459bf"),
    "6ec2": ("small-teacher", "528060b"),
}
"""Models that shipped once: what their streams name -> the name then, and the last commit that has the weights."""


@dataclass(frozen=True)
class Shipped:
    """One model of the package.

    Attributes:
        name: what `load` takes.
        folder: where it lies.
        bytes: size of its weights on disk.
        parameters: how many numbers they are.
        fingerprint: SHA-256, hexadecimal, which its streams name by their first two bytes.
        card: command, code version, data and results.
    """

    name: str
    folder: Path
    bytes: int
    parameters: int
    fingerprint: str
    card: dict[str, Any]


def names() -> list[str]:
    """What `load` takes, the default first: the order in which a reader is offered them."""
    return sorted(shipped_models(), key=lambda name: name != DEFAULT)


def models() -> list[Shipped]:
    """The models of this installation, by name."""
    return [_read(name, folder) for name, folder in shipped_models().items()]


def load(name: str = DEFAULT, device: str = "cpu", fast: bool = False) -> "Codec":
    """A shipped model, ready to compress and decompress. Raises UserError for an unknown name."""
    known = shipped_models()
    if name not in known:
        raise UserError(f"no shipped model {name!r}{did_you_mean(name, known)}; there are {', '.join(known) or 'none'}")
    from aeic_lightning.codec import Codec

    return Codec.from_pretrained(known[name], device=device, fast=fast)


def writer_of(model_id: bytes) -> Shipped | None:
    """The shipped model whose streams have these two bytes in their header; None if there is none."""
    return next((model for model in models() if bytes.fromhex(model.fingerprint)[: len(model_id)] == model_id), None)


def earlier_writer(model_id: bytes) -> str | None:
    """What to do with a stream of a model that ships no more, by the two bytes in its header; None if none is known."""
    if model_id.hex() not in EARLIER:
        return None
    name, commit = EARLIER[model_id.hex()]
    return (
        f"an earlier {name} (model {model_id.hex()}) wrote it, which ships no more; commit {commit} of the project has "
        "its weights, and `aeic-lightning decompress` of that commit decodes it"
    )


def _read(name: str, folder: Path) -> Shipped:
    config = read_config(folder)
    size = (folder / WEIGHTS).stat().st_size
    return Shipped(name, folder, size, config["parameters"], config["fingerprint"], config.get("card", {}))
