"""Dual-side feature distillation: a frozen teacher beside a student."""

from typing import Any

import torch
from torch import Tensor

from aeic_lightning.checkpoints.checkpoint import load_aeic, load_strictly, read_checkpoint, with_prefix
from aeic_lightning.errors import UserError
from aeic_lightning.losses.distillation import DistillationLoss, Pair, tap_channels
from aeic_lightning.models.aeic import AEIC, AEICOutput, codec_taps, decoder_taps
from aeic_lightning.models.backbones import Frozen, full_precision
from aeic_lightning.systems.student import StudentSystem
from aeic_lightning.systems.tap_cache import TapCache


class DistillationSystem(StudentSystem):
    """AEIC-SE: adds beta1 L_enc + beta2 L_dec to the student's loss.

    The teacher is loaded while the system is built, so a missing or a foreign one stops the run before it starts. It
    has no gradients, stays in evaluation mode, and is not in the checkpoints.

    Args:
        teacher: checkpoint of the teacher.
        pairs: which taps are matched (`Pair`).
        beta1: weight of L_enc (AEIC: 0.5).
        beta2: weight of L_dec (AEIC: 0.001).
        share_base: where the decoder has a pretrained base, hold it once, with an adapter each for teacher and
            student, instead of twice. The results are the same.
        teacher_cache: folder in which the teacher's taps are kept, for crops that come again (`TapCache`).
        **student: see `StudentSystem`.
    """

    def __init__(
        self,
        *args,
        teacher: str,
        pairs: list[Pair],
        beta1: float = 0.5,
        beta2: float = 0.0,
        share_base: bool = True,
        teacher_cache: str | None = None,
        **student,
    ) -> None:
        super().__init__(*args, **student)
        for side, weight, name in (("encoder", beta1, "beta1"), ("decoder", beta2, "beta2")):
            if weight and not any(pair.side == side for pair in pairs):
                raise UserError(f"distillation: {name} is {weight} but no pair has side: {side}; add one or set it 0")
        self.beta1, self.beta2 = beta1, beta2
        pairs = [pair for pair in pairs if (beta1 if pair.side == "encoder" else beta2)]
        ours = self.model.decoder
        self.teacher = Frozen(load_aeic(teacher, "teacher", base=ours.config.pretrained))
        theirs = self.teacher.net
        if share_base and ours.config.pretrained and theirs.decoder.config.pretrained:
            # After the teacher was frozen as a whole: from now on its base has a part that is trained.
            ours.share_base(theirs.decoder, "student")
        self.distillation = DistillationLoss(
            pairs,
            tap_channels(self.model.codec.config, self.model.decoder.config),
            tap_channels(theirs.codec.config, theirs.decoder.config),
        )
        names = {pair.teacher_tap or pair.tap for pair in pairs}
        self.cache = TapCache(teacher_cache, teacher, names) if teacher_cache else None

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
            self.distillation.check_shapes(*(_taps(model, x, True) for model in (self.model, self.teacher.net)))
        self.model.train(was_training)

    @torch.no_grad()
    def teacher_taps(self, x: Tensor) -> dict[str, Tensor]:
        """The teacher's taps for images (B, 3, H, W); its denoiser runs only when the decoder side is matched."""
        return _taps(self.teacher.net, x, "decoder" in self.distillation.sides)

    def extra_loss(self, x: Tensor, output: AEICOutput) -> tuple[Tensor, dict[str, Tensor]]:
        cached: dict[str, Tensor] = {}
        if self.cache is None:
            theirs = self.teacher_taps(x)
        else:
            theirs, share = self.cache.taps(x, self.teacher_taps)
            cached["distill/cached"] = torch.tensor(share)
        sums, taps = self.distillation(output.taps, theirs)
        weights = {"encoder": self.beta1, "decoder": self.beta2}
        total = sum(weights[side] * value for side, value in sums.items())
        named = {"distill/L_enc": sums.get("encoder"), "distill/L_dec": sums.get("decoder")}
        terms = {name: value for name, value in named.items() if value is not None}
        return total, cached | terms | {f"distill/{name}": value for name, value in taps.items()}

    def hparam_columns(self) -> dict[str, Any]:
        return super().hparam_columns() | {"beta1": self.beta1, "beta2": self.beta2} | self.labels


def _taps(model: AEIC, x: Tensor, decoder: bool) -> dict[str, Tensor]:
    """The codec's taps, and the decoder's if asked for: of a whole pass, since tiles have none."""
    with full_precision(x):  # as in `AEIC.forward`
        output = model.codec(x)
    return codec_taps(output) | (decoder_taps(*model.decoder.denoiser(output.l_T)) if decoder else {})
