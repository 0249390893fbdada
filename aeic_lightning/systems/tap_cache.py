"""The taps of a frozen teacher for images that it has seen before."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from aeic_lightning.checkpoints.weights import WEIGHTS
from aeic_lightning.files import locate, write_whole
from aeic_lightning.models.frozen import read_state_dict
from aeic_lightning.models.layers import are_networks_in_bfloat16


class TapCache:
    """Taps on disk, one file an image, found again by the image's pixels.

    Since the pixels are the key, a cached tap is right whatever the data module does; it is of use only where the same
    crops come back. Random crops do not: cut the images to the crop size beforehand, so that each has one crop and at
    most four flips. The values are those of the teacher's pass, in its precision.

    Args:
        folder: where the files go; runs with the same teacher and taps may share it.
        teacher: the teacher's checkpoint; another one never finds this one's taps.
        names: the taps to keep.
    """

    def __init__(self, folder: str | Path, teacher: str | Path, names: set[str]) -> None:
        path = locate(teacher)
        with (path / WEIGHTS if path.is_dir() else path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        taps = hashlib.sha256(" ".join(sorted(names)).encode()).hexdigest()
        self.folder = Path(folder) / f"{digest[:16]}-{taps[:8]}"
        self.names = names

    def taps(
        self, x: Tensor, compute: Callable[[Tensor, Tensor | None], dict[str, Tensor]], level: Tensor | None = None
    ) -> tuple[dict[str, Tensor], float]:
        """The taps of images (B, 3, H, W) at rate levels (B,), and the share that was there already.

        `compute` is called on the others, and what it gives is kept.
        """
        low = torch.is_autocast_enabled(x.device.type)
        precision = str(torch.get_autocast_dtype(x.device.type) if low else x.dtype).removeprefix("torch.")
        precision = "networks_in_bfloat16" if are_networks_in_bfloat16() else precision
        levels = [""] * len(x) if level is None else [f"-{value:g}" for value in level.tolist()]
        files = [
            self.folder / precision / f"{_digest(image)}{at}.safetensors" for image, at in zip(x, levels, strict=True)
        ]
        missing = [i for i, file in enumerate(files) if not file.is_file()]
        if missing:
            computed = compute(x[missing], None if level is None else level[missing])
            for row, i in enumerate(missing):
                write_whole(files[i], save({name: computed[name][row].cpu().contiguous() for name in self.names}))
        rows = [read_state_dict(file) for file in files]
        taps = {name: torch.stack([row[name] for row in rows]).to(x.device) for name in self.names}
        return taps, 1 - len(missing) / len(files)


def _digest(image: Tensor) -> str:
    return hashlib.blake2b(f"{tuple(image.shape)}".encode() + image.cpu().numpy().tobytes(), digest_size=16).hexdigest()
