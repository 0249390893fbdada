"""Encoders from outside of the package, as an experimenter would write them."""

import torch
from torch import Tensor, nn


class PlainEncoder(nn.Module):
    """Stride 2 ** stages: a plain convolution with stride 2 and a ReLU a stage."""

    def __init__(self, width: int, channels: int = 32, stages: int = 5) -> None:
        super().__init__()
        self.body = nn.Sequential()
        for stage in range(stages - 1):
            self.body.append(nn.Conv2d(3 if stage == 0 else width, width, 3, stride=2, padding=1))
            self.body.append(nn.ReLU())
        self.last = nn.Conv2d(width, channels, 3, stride=2, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        with torch.no_grad():
            self.last.weight.mul_(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x))


class PooledEncoder(PlainEncoder):
    """Looks at the whole image."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + y.mean(dim=(2, 3), keepdim=True)


class PositionedEncoder(PlainEncoder):
    """Each row of y depends on where it is."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + torch.arange(y.shape[2], device=y.device)[:, None] / 8


class NormalisedEncoder(PlainEncoder):
    """BatchNorm and dropout before y: layers that evaluation computes otherwise than training."""

    def __init__(self, width: int, channels: int = 32) -> None:
        super().__init__(width, channels)
        self.norm, self.dropout = nn.BatchNorm2d(width), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(self.norm(self.body(x))))


class AttentiveEncoder(nn.Module):
    """Patches of 32 pixels through a transformer layer; its constructor computes, as many do."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.rate = torch.linspace(0, 1, 3)[1].item()
        self.patches = nn.Conv2d(3, channels, 32, stride=32)
        self.layer = nn.TransformerEncoderLayer(channels, 2, 2 * channels, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x)
        return self.layer(y.flatten(2).mT).mT.unflatten(2, y.shape[2:])
