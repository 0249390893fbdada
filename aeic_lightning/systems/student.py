"""The student: a model with a shallow encoder, and the receiver that its teacher trained."""

from pathlib import Path
from typing import Any

from torch import Tensor

from aeic_lightning.checkpoints.checkpoint import check_base, load_strictly, read_checkpoint, with_prefix
from aeic_lightning.errors import UserError
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import DecoderConfig
from aeic_lightning.models.decoder.stable_diffusion import base_digests, split_decoder
from aeic_lightning.systems.compression import CompressionSystem
from aeic_lightning.systems.optimization import OptimizationConfig


class StudentSystem(CompressionSystem):
    """AEIC-SE without distillation: the control of every distillation study.

    Args:
        codec, decoder, objective, optimization, init_from, write_streams, labels: see `CompressionSystem`.
        receiver_from: a teacher's checkpoint. The decoder starts from the teacher's, and so does g_s wherever its
            shapes agree (all but its first adapter when M differs). Where the decoder is an adapter over the decoder of
            this very teacher (`export --base`), it starts there without being loaded. Not used together with
            `init_from`.
    """

    def __init__(
        self,
        codec: CodecConfig,
        decoder: DecoderConfig,
        objective: dict[str, Any],
        optimization: OptimizationConfig,
        init_from: str | None = None,
        receiver_from: str | None = None,
        write_streams: bool | int = True,
        labels: dict[str, str | int | float] | None = None,
    ) -> None:
        super().__init__(codec, decoder, objective, optimization, init_from, write_streams, labels)
        if receiver_from and init_from:
            raise UserError("student: give receiver_from or init_from, not both; init_from already has a receiver")
        self.receiver_from = receiver_from

    def load_start(self) -> None:
        super().load_start()
        if self.receiver_from:
            self.load_receiver(self.receiver_from)

    def load_receiver(self, path: str | Path) -> None:
        """Start from the receiver's half of a teacher."""
        checkpoint = read_checkpoint(path, "receiver_from")
        check_base(self.model, checkpoint, path, "receiver_from")
        decoder = with_prefix(checkpoint, "model.decoder.")
        if not is_base(decoder, self.model.decoder.base_digests):
            load_strictly(self.model.decoder, decoder, path, "receiver_from (the decoder)")
        own = self.model.codec.g_s.state_dict()
        theirs = with_prefix(checkpoint, "model.codec.g_s.")
        own |= {name: tensor for name, tensor in theirs.items() if name in own and own[name].shape == tensor.shape}
        self.model.codec.g_s.load_state_dict(own)


def is_base(decoder: dict[str, Tensor], digests: dict[str, str] | None) -> bool:
    """Whether the tensors of a whole decoder are the base with these digests."""
    if digests is None or not any(name.startswith("vae.") for name in decoder):
        return False
    return base_digests(*split_decoder(decoder)) == digests
