"""Weights apart from training state: a folder of `config.json` and `model.safetensors`.

The values are float16 unless float32 is asked for, and every reader widens them, so what is evaluated is what was
stored. The folder is what `Codec.save_pretrained` writes, what ships inside of the package (`aeic_lightning.zoo`), and
what a repository on the Hugging Face Hub holds. Wherever a checkpoint is asked for, such a folder or the name of a
shipped model will do.

A model whose receiver is that of a shipped one need not hold it again: `shares` in `config.json` then names that model,
the SHA-256 of its weights and the parts that are taken from there. Of a second decoder, of realistic pictures, only
what differs from the first is held.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aeic_lightning.errors import UserError
from aeic_lightning.files import CONFIG, shipped_models, write_whole

if TYPE_CHECKING:
    from torch import Tensor

# torch is imported where it is needed: that there is no such file is found without it.

FORMAT = "aeic_lightning weights 1"
DTYPES = ("float16", "float32")
WEIGHTS = "model.safetensors"
DECODER = "decoder."


def write_weights(
    folder: str | Path,
    config: dict[str, Any],
    state: "dict[str, Tensor]",
    dtype: str = "float16",
    shares: str | None = None,
) -> None:
    """Write a model's tensors as `dtype`, float16 or float32, and `config` beside them.

    Args:
        folder, config, state, dtype: as above.
        shares: a shipped model. Parts (`codec.g_s`, `decoder.vae`) that equal its own in every value are left out.

    Raises UserError for another type, for a value that float16 cannot hold, and where no part is shared.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype is {' or '.join(DTYPES)}, not {dtype!r}")
    import torch
    from safetensors.torch import save

    folder = Path(folder)
    stored = {}
    for name, tensor in state.items():
        kind = getattr(torch, dtype) if tensor.is_floating_point() else tensor.dtype
        stored[name] = tensor.detach().cpu().to(kind).contiguous()
        if not stored[name].isfinite().all():
            raise UserError(f"{name} has values that are not finite in {dtype}; the model has diverged")
    twins = {_twin(name): tensor for name, tensor in stored.items() if name.startswith(DECODER)}
    stored = {name: t for name, t in stored.items() if not (name in twins and t.equal(twins[name]))}
    if shares is not None:
        other, digest = _shipped(shares)
        ours, theirs = _by_part(stored), _by_part(other)
        parts = [part for part in ours if _equal(ours[part], theirs.get(part, {}))]
        if not parts:
            raise UserError(f"no part of the model equals that of {shares}; leave out --shares")
        stored = {name: tensor for name, tensor in stored.items() if _part(name) not in parts}
        config = config | {"shares": {"model": shares, "sha256": digest, "parts": parts}}
    write_whole(folder / WEIGHTS, save(stored, metadata={"format": "pt"}))
    write_whole(folder / CONFIG, json.dumps({"format": FORMAT} | config, indent=1) + "\n")


def read_config(folder: str | Path) -> dict[str, Any]:
    """The `config.json` of a folder of weights. Raises UserError when it is missing, damaged or of something else."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no model: {CONFIG} cannot be read ({error})") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UserError(
            f"{folder} holds no weights of aeic_lightning ({FORMAT}); name a folder that save_pretrained wrote"
        )
    return config


def read_weights(folder: str | Path) -> dict[str, Any]:
    """A folder of weights in the form of a checkpoint: `model_config`, `state_dict` (float32), and `card`.

    Raises UserError when a file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_config(folder)
    try:
        state = load_file(Path(folder) / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: {WEIGHTS} cannot be read ({str(error).splitlines()[0]}); fetch it again") from error
    if shares := config.get("shares"):
        other, digest = _shipped(shares["model"])
        if digest != shares["sha256"]:
            raise UserError(
                f"{folder} takes {', '.join(shares['parts'])} from {shares['model']}, whose weights are other ones in "
                f"this version of aeic_lightning; install the one that wrote the folder ({config['aeic_lightning']})"
            )
        state |= {name: tensor for name, tensor in other.items() if _part(name) in shares["parts"]}
    if config.get("model_config", {}).get("realistic"):
        state = {_twin(name): tensor for name, tensor in state.items() if name.startswith(DECODER)} | state
    tensors = {f"model.{name}": t.float() if t.is_floating_point() else t for name, t in state.items()}
    return config | {"state_dict": tensors}


def _shipped(name: str) -> "tuple[dict[str, Tensor], str]":
    """The tensors of a shipped model that shares nothing itself, and the SHA-256 of its file."""
    from safetensors.torch import load

    known = {name: folder for name, folder in shipped_models().items() if "shares" not in read_config(folder)}
    if name not in known:
        raise UserError(f"no shipped model {name!r} to share parts with; there are {', '.join(known) or 'none'}")
    data = (known[name] / WEIGHTS).read_bytes()
    return load(data), hashlib.sha256(data).hexdigest()


def _twin(name: str) -> str:
    """The tensor of the second decoder that corresponds to one of the first."""
    from aeic_lightning.models.aeic import REALISTIC

    return REALISTIC + name.removeprefix(DECODER)


def _part(name: str) -> str:
    return ".".join(name.split(".")[:2])


def _by_part(state: "dict[str, Tensor]") -> "dict[str, dict[str, Tensor]]":
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        parts.setdefault(_part(name), {})[name] = tensor
    return parts


def _equal(ours: "dict[str, Tensor]", theirs: "dict[str, Tensor]") -> bool:
    return ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)
