"""Dual-side feature distillation: a frozen teacher beside a student."""

from typing import Any

import torch
from torch import Tensor

from aeic_lightning import UserError
from aeic_lightning.losses.distillation import DistillationLoss, Pair, tap_channels
from aeic_lightning.model import AEICOutput, codec_taps, decoder_taps
from aeic_lightning.systems.student import StudentSystem
from aeic_lightning.weights.backbones import Frozen
from aeic_lightning.weights.checkpoint import load_model, load_strictly, read_checkpoint, with_prefix


class DistillationSystem(StudentSystem):
    """AEIC-SE: adds beta1 L_enc + beta2 L_dec to the student's loss.

    The teacher is loaded while the system is built, so a missing or a foreign one stops the run before it starts. It
    has no gradients, stays in evaluation mode, and is not in the checkpoints.

    Args:
        teacher: checkpoint of the teacher.
        pairs: which taps are matched (`Pair`).
        beta1: weight of L_enc (AEIC: 0.5).
        beta2: weight of L_dec (AEIC: 0.001).
        **student: see `StudentSystem`.
    """

    def __init__(
        self, *args, teacher: str, pairs: list[Pair], beta1: float = 0.5, beta2: float = 0.0, **student
    ) -> None:
        super().__init__(*args, **student)
        for side, weight, name in (("encoder", beta1, "beta1"), ("decoder", beta2, "beta2")):
            if weight and not any(pair.side == side for pair in pairs):
                raise UserError(f"distillation: {name} is {weight} but no pair has side: {side}; add one or set it 0")
        self.beta1, self.beta2 = beta1, beta2
        pairs = [pair for pair in pairs if (beta1 if pair.side == "encoder" else beta2)]
        self.teacher = Frozen(load_model(teacher, "teacher"))
        theirs = self.teacher.net
        self.distillation = DistillationLoss(
            pairs,
            tap_channels(self.model.codec.config, self.model.decoder.config),
            tap_channels(theirs.codec.config, theirs.decoder.config),
        )

    def load_stage(self, path: str) -> None:
        """The model of the stage before, and its projections wherever this stage has the same ones."""
        super().load_stage(path)
        state = with_prefix(read_checkpoint(path, "init_from"), "distillation.projections.")
        for key, projection in self.distillation.projections.items():
            own = {name: state[f"{key}.{name}"] for name in projection.state_dict() if f"{key}.{name}" in state}
            if own:
                load_strictly(projection, own, path, "init_from (a projection)")

    def on_fit_start(self) -> None:
        """Compare the shapes of all pairs on one small batch before step 0."""
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad():
            x = torch.zeros(1, 3, 8 * self.model.codec.stride, 8 * self.model.codec.stride, device=self.device)
            self.distillation.check_shapes(self.model(x).taps, self.teacher.net(x).taps)
        self.model.train(was_training)

    @torch.no_grad()
    def teacher_taps(self, x: Tensor) -> dict[str, Tensor]:
        """The teacher's taps for images (B, 3, H, W); its denoiser runs only when the decoder side is matched."""
        teacher = self.teacher.net
        output = teacher.codec(x)
        taps = codec_taps(output)
        if "decoder" in self.distillation.sides:
            taps |= decoder_taps(*teacher.decoder.denoiser(output.l_T))
        return taps

    def extra_loss(self, x: Tensor, output: AEICOutput) -> tuple[Tensor, dict[str, Tensor]]:
        sums, taps = self.distillation(output.taps, self.teacher_taps(x))
        weights = {"encoder": self.beta1, "decoder": self.beta2}
        total = sum(weights[side] * value for side, value in sums.items())
        named = {"distill/L_enc": sums.get("encoder"), "distill/L_dec": sums.get("decoder")}
        terms = {name: value for name, value in named.items() if value is not None}
        return total, terms | {f"distill/{name}": value for name, value in taps.items()}

    def hparam_columns(self) -> dict[str, Any]:
        return super().hparam_columns() | {"beta1": self.beta1, "beta2": self.beta2}
