"""The student: a model with a shallow encoder, and the receiver that its teacher trained."""

from typing import Any

from torch import Tensor

from aeic_lightning.checkpoints.checkpoint import check_base, read_checkpoint, with_prefix
from aeic_lightning.checkpoints.start import StartFrom, take_over
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
            shapes agree (all but its first adapter when M differs). It is refused where less than half of g_s fits, and
            where the decoder does not, unless it is `{path: ..., partial: true}`. Where the decoder is an adapter over
            the decoder of this very teacher (`export --base`), it starts there without being loaded. Not used together
            with `init_from`.
    """

    def __init__(
        self,
        codec: CodecConfig,
        decoder: DecoderConfig,
        objective: dict[str, Any],
        optimization: OptimizationConfig,
        init_from: str | StartFrom | None = None,
        receiver_from: str | StartFrom | None = None,
        write_streams: bool | int = True,
        labels: dict[str, str | int | float] | None = None,
    ) -> None:
        super().__init__(codec, decoder, objective, optimization, init_from, write_streams, labels)
        if receiver_from and init_from:
            raise UserError("student: give receiver_from or init_from, not both; init_from already has a receiver")
        self.receiver_from = None if receiver_from is None else StartFrom.of(receiver_from, "receiver_from")
        if self.receiver_from and self.receiver_from.only:
            raise UserError("receiver_from takes g_s and the decoder; for other parts use init_from: {path, only}")

    def load_start(self) -> None:
        super().load_start()
        if self.receiver_from:
            self.load_receiver(self.receiver_from)

    def load_receiver(self, start: StartFrom) -> None:
        """Start from the receiver's half of a teacher."""
        role, path, codec = "receiver_from", start.path, self.model.codec
        checkpoint = read_checkpoint(path, role)
        check_base(self.model, checkpoint, path, role)
        ours, theirs = codec.g_s.state_dict(), with_prefix(checkpoint, "model.codec.g_s.")
        fit = [name for name, tensor in theirs.items() if name in ours and ours[name].shape == tensor.shape]
        if 2 * len(fit) < len(ours) and not start.partial:
            raise UserError(
                f"{role}: {path}: only {len(fit)} of {len(ours)} tensors of codec.g_s fit; give this run the teacher's "
                f"synthesis_widths and depths, or accept it with {role}: {{path: {path}, partial: true}}"
            )
        decoder = with_prefix(checkpoint, "model.decoder.")
        counts = {}
        if not is_base(decoder, self.model.decoder.base_digests):
            counts = take_over(self.model.decoder, decoder, start, f"{role} (the decoder)")
            counts = {"decoder": [sum(column) for column in zip(*counts.values(), strict=True)]}
        codec.g_s.load_state_dict(ours | {name: theirs[name] for name in fit})
        self.note_start(role, path, {"codec.g_s": [len(fit), len(ours)]} | counts)


def is_base(decoder: dict[str, Tensor], digests: dict[str, str] | None) -> bool:
    """Whether the tensors of a whole decoder are the base with these digests."""
    if digests is None or not any(name.startswith("vae.") for name in decoder):
        return False
    return base_digests(*split_decoder(decoder)) == digests
