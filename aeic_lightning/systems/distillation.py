"""Dual-side feature distillation: a frozen teacher beside a student."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from aeic_lightning.checkpoints.checkpoint import load_aeic, load_strictly, read_checkpoint, with_prefix
from aeic_lightning.checkpoints.start import StartFrom
from aeic_lightning.errors import UserError
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import DecoderConfig, OneStepDecoder
from aeic_lightning.models.frozen import Frozen
from aeic_lightning.systems.optimization import OptimizationConfig
from aeic_lightning.systems.student import StudentSystem
from aeic_lightning.systems.tap_cache import TapCache


class DistillationSystem(StudentSystem):
    """AEIC-SE: a student whose objective has L_enc and L_dec, which compare its taps with the teacher's.

    The teacher is loaded while the system is built, so a missing or a foreign one stops the run before it starts. It
    has no gradients, stays in evaluation mode, and is not in the checkpoints.

    Args:
        codec, decoder, objective, optimization, init_from, write_streams, labels: see `CompressionSystem`.
        receiver_from: see `StudentSystem`.
        teacher: checkpoint of the teacher.
        share_base: where the decoder has a pretrained base, hold it once, with an adapter each for teacher and
            student, instead of twice. The results are the same.
        teacher_cache: folder in which the teacher's taps are kept, for crops that come again (`TapCache`).
    """

    def __init__(
        self,
        codec: CodecConfig,
        decoder: DecoderConfig,
        objective: dict[str, Any],
        optimization: OptimizationConfig,
        teacher: str,
        init_from: str | StartFrom | None = None,
        receiver_from: str | StartFrom | None = None,
        share_base: bool = True,
        teacher_cache: str | None = None,
        write_streams: bool | int = True,
        labels: dict[str, str | int | float] | None = None,
    ) -> None:
        super().__init__(codec, decoder, objective, optimization, init_from, receiver_from, write_streams, labels)
        ours = self.model.decoder
        self.teacher = Frozen(load_aeic(teacher, "teacher", base=ours.config.pretrained))
        theirs = self.teacher.net.decoder
        if share_base and ours.config.pretrained and theirs.config.pretrained:
            # After the teacher was frozen as a whole: from now on its base has a part that is trained.
            ours.share_base(theirs, "student")
        check_levels(self.model, self.teacher.net, teacher)
        self.objective.bind(self.model, self.teacher.net)
        names = self.objective.teacher_taps
        check_read(names)
        self.cache = TapCache(teacher_cache, teacher, set(names)) if teacher_cache else None

    @property
    def decoders(self) -> list[OneStepDecoder]:
        return [self.model.decoder, self.teacher.net.decoder]

    def check_shards(self) -> None:
        super().check_shards()
        if self.cache is not None:
            raise UserError(
                "optimization.shard_base: a process that finds its crops in the teacher_cache runs no teacher, and the "
                "others would wait for it; leave one of the two out"
            )

    @property
    def replayable(self) -> bool:
        return self.cache is None

    def teacher_taps(self, x: Tensor, level: Tensor | None = None) -> dict[str, Tensor]:
        """The teacher's taps for images (B, 3, H, W) at the student's rate levels, from the cache if they are there."""
        if self.cache is None:
            return self.compute_teacher_taps(x, level)
        taps, share = self.cache.taps(x, self.compute_teacher_taps, level)
        self.log("train/distill/cached", share)
        return taps

    @torch.no_grad()
    def compute_teacher_taps(self, x: Tensor, level: Tensor | None = None) -> dict[str, Tensor]:
        """The teacher's taps for images (B, 3, H, W); its denoiser runs only when a tap of the decoder is compared."""
        return self.teacher.net.compute_taps(x, self.objective.teacher_taps, level)

    def load_stage(self, start: StartFrom) -> None:
        """The model of the stage before, and its projections wherever this stage has the same ones."""
        super().load_stage(start)
        if start.only:
            return
        path, taken = start.path, []
        state = with_prefix(read_checkpoint(path, "init_from"), "objective.terms.")
        for name, term in self.objective.terms.items():
            for key, projection in getattr(term, "projections", {}).items():
                prefix = f"{name}.projections.{key}."
                own = {k: state[prefix + k] for k in projection.state_dict() if prefix + k in state}
                if own:
                    load_strictly(projection, own, path, "init_from (a projection)")
                    taken += own
        if taken:
            every = [name for name, _ in self.objective.terms.named_parameters() if ".projections." in name]
            self.note_start("init_from (projections)", path, {"objective": [len(taken), len(every)]})


def check_levels(student: AEIC, teacher: AEIC, path: str) -> None:
    """Raise UserError where the teacher at `path` has other rate levels than its student."""
    if teacher.rate_levels != student.rate_levels:
        raise UserError(
            f"distillation: the teacher {path} has {teacher.rate_levels} rate levels, the student "
            f"{student.rate_levels}; give the student's codec the teacher's rate_levels"
        )


def check_read(teacher_taps: Collection[str], otherwise: str = "StudentSystem") -> None:
    """Raise UserError where no term reads the teacher; `otherwise` is the system for that."""
    if not teacher_taps:
        raise UserError(f"distillation: no term reads the teacher; give L_enc or L_dec, or use {otherwise}")
