"""An encoder that is kept but not run, where its class is not: a receiver decodes without it."""

from collections.abc import Mapping

from torch import Tensor

from aeic_lightning.errors import UserError
from aeic_lightning.models.stored import Stored


class StoredEncoder(Stored):
    """The tensors of an encoder under their names: the fingerprint of a stream covers them.

    Args:
        state: its tensors.
        channels, stride: of y.
        reason: what keeps it from being run, which whoever asks for y is told.
    """

    def __init__(self, state: Mapping[str, Tensor], channels: int, stride: int, reason: str) -> None:
        super().__init__(state)
        self.channels, self.stride, self.reason = channels, stride, reason

    def forward(self, x: Tensor) -> Tensor:
        raise UserError(f"this model decodes here but does not compress: {self.reason}")
