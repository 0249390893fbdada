"""Weights apart from training state: a folder of `config.json` and `model.safetensors`.

The values are float16 unless float32 is asked for, and every reader widens them, so what is evaluated is what was
stored. The folder is
what `Codec.save_pretrained` writes, what ships inside of the package (`aeic_lightning.zoo`), and
what a repository on the Hugging Face Hub holds. Wherever a checkpoint is asked for, such a folder or the name of a
shipped model will do.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aeic_lightning.errors import UserError
from aeic_lightning.files import CONFIG, write_whole

if TYPE_CHECKING:
    from torch import Tensor

# torch is imported where it is needed: that there is no such file is found without it.

FORMAT = "aeic_lightning weights 1"
DTYPES = ("float16", "float32")
WEIGHTS = "model.safetensors"


def write_weights(
    folder: str | Path, config: dict[str, Any], state: "dict[str, Tensor]", dtype: str = "float16"
) -> None:
    """Write a model's tensors as `dtype`, float16 or float32, and `config` beside them.

    Raises UserError for another type, and for a value that float16 cannot hold.
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
    tensors = {f"model.{name}": t.float() if t.is_floating_point() else t for name, t in state.items()}
    return config | {"state_dict": tensors}
