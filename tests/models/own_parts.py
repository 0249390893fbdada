"""Parts of the codec from outside of the package, as an experimenter would write them."""

from torch import Tensor, nn

from aeic_lightning.models.codec.context import GridContext


class PlainHyperAnalysis(nn.Sequential):
    """y -> z of `width` channels, at an eighth of its sides."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 8, stride=8))


class PlainHyperSynthesis(nn.Sequential):
    """Three transposed convolutions."""

    def __init__(self, channels: int, out_channels: int, width: int) -> None:
        double = {"kernel_size": 5, "stride": 2, "padding": 2, "output_padding": 1}
        super().__init__(
            *(nn.ConvTranspose2d(channels, width, **double), nn.LeakyReLU()),
            *(nn.ConvTranspose2d(width, width, **double), nn.GELU()),
            nn.ConvTranspose2d(width, out_channels, **double),
        )


class RowsContext(GridContext):
    """Two steps: even rows, then odd rows."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width, 1, ((((0, 0), (0, 1)),) * 4, (((1, 0), (1, 1)),) * 4))


class PlainSynthesis(nn.Sequential):
    """From stride 32 to stride 8 in one pixel shuffle."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(nn.Conv2d(channels, 16 * out_channels, 1), nn.PixelShuffle(4))


class SquaredUp(nn.Sequential):
    """A sequence whose forward is not a sequence's."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(nn.ConvTranspose2d(channels, out_channels, 4, stride=4))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square()


class TooSmall(nn.Sequential):
    """Keeps the sides of what it gets."""

    def __init__(self, channels: int, out_channels: int = 8) -> None:
        super().__init__(nn.Conv2d(channels, out_channels, 1))
