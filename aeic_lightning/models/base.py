"""What every kind of compression model tells of itself to whoever codes, evaluates or stores it."""

from typing import Any, ClassVar, Self

from torch import Tensor, nn

from aeic_lightning.errors import UserError
from aeic_lightning.models.codec.context import FactorizedPrior
from aeic_lightning.models.taps import Tap


class CompressionModel(nn.Module):
    """A model whose images go through a stream of y and z.

    How its streams are coded is registered with `aeic_lightning.bitstream.stream.coding`.
    """

    generative: ClassVar[bool]  # whether its pictures have details that no stream holds

    @property
    def config(self) -> dict[str, Any]:
        """The sizes as plain values, which a checkpoint carries as `model_config`."""
        raise NotImplementedError

    @property
    def prior(self) -> FactorizedPrior:
        """The density of z."""
        raise NotImplementedError

    @property
    def taps(self) -> list[Tap]:
        """The taps that its parts declare."""
        return []

    def estimate_bits(self, x: Tensor, level: float | None = None) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> likelihood bits of y and z (B,), padding included."""
        raise NotImplementedError

    @property
    def rate_levels(self) -> int:
        """Levels of a model of many rates, which go from 0 (smallest files) to this less one; 0 for a single rate."""
        return 0

    def draw_levels(self, count: int, level: Any = None) -> Tensor | None:
        """Rate levels (count,) of a training batch: `level`, or drawn; None for a model of a single rate.

        Raises UserError for a level that the model does not have.
        """
        if level is not None:
            raise UserError(f"optimization.level: {level}: this model has a single rate; leave it out")
        return None

    def load_base(self) -> None:
        """Bring in pretrained weights that no checkpoint has, if there are any."""

    def for_decoding(self) -> "CompressionModel":
        """This model, made quick for a receiver that will not train it. Its `state_dict` does not change."""
        return self

    def at_realism(self, realism: float | None) -> Self:
        """This model, whose pictures are as realistic as that: 0 the most faithful ones, 1 the most realistic.

        Streams and fingerprint stay this model's: take the result for `reconstruct` alone. None is 0. Raises UserError
        outside of 0 to 1, and above 0 for a model with one decoder.
        """
        if realism is not None and not 0 <= realism <= 1:
            raise UserError(f"realism is {realism:g}; it is from 0 (faithful) to 1 (realistic)")
        if realism:
            raise UserError(
                "this model has no realistic weights; leave realism out, or add some: export --weights --realistic CKPT"
            )
        return self

    def reconstruct(self, y_hat: Tensor, level: float | None = None) -> Tensor:
        """Decoded latents (B, M, h, w) -> pictures of the padded size, in [-1, 1] but not clamped.

        `level` is the rate level that they were coded at, for a model that has several.
        """
        raise NotImplementedError
