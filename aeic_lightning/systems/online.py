"""Distillation without a finished teacher: one that is trained beside the student, or the student's own average."""

import copy
from typing import Any

import torch
from torch import Tensor

from aeic_lightning.checkpoints.start import StartFrom
from aeic_lightning.errors import UserError
from aeic_lightning.losses.adversarial import Adversarial
from aeic_lightning.losses.objective import Objective
from aeic_lightning.losses.tap_term import TapTerm
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import DecoderConfig
from aeic_lightning.systems.averaging import average_in, running_statistics
from aeic_lightning.systems.compression import CompressionSystem
from aeic_lightning.systems.distillation import check_read
from aeic_lightning.systems.optimization import QUANTILE_INTERVAL, OptimizationConfig


class OnlineDistillationSystem(CompressionSystem):
    """Online or self-distillation: student and teacher learn in the same step, from the same crops.

    Online (Zhang et al. 2018, "Deep Mutual Learning", one way): the teacher has its own codec, `teacher_codec`, and
    learns by `teacher_objective`. The student's terms compare its taps with the teacher's of the same step, which pass
    no gradient. One optimizer trains both; the gradient of each is clipped to `gradient_clip` separately.

    Self (Tarvainen and Valpola 2017, "Mean teachers"), without a `teacher_codec`: the teacher is the exponential moving
    average of the student's own weights.

    Validation, test and whoever reads the checkpoint see the student; the teacher's weights lie beside it, under
    `teacher.`, so that a resumed run goes on bit for bit.

    Args:
        codec, decoder, objective, optimization, init_from, write_streams, labels: see `CompressionSystem`.
        teacher_codec: sizes of the teacher's codec; its decoder has the student's sizes. None for self-distillation.
        teacher_objective: the teacher's own terms; default: the student's without those that compare taps and
            without the adversary.
        teacher_decay: share of the average that a step keeps, in self-distillation.
    """

    def __init__(
        self,
        codec: CodecConfig,
        decoder: DecoderConfig,
        objective: dict[str, Any],
        optimization: OptimizationConfig,
        teacher_codec: CodecConfig | None = None,
        teacher_objective: dict[str, Any] | None = None,
        teacher_decay: float = 0.99,
        init_from: str | StartFrom | None = None,
        write_streams: bool | int = True,
        labels: dict[str, str | int | float] | None = None,
    ) -> None:
        super().__init__(codec, decoder, objective, optimization, init_from, write_streams, labels)
        if not 0 <= teacher_decay < 1:
            raise UserError(f"distillation: teacher_decay must be 0 or more and below 1, not {teacher_decay}")
        if decoder.pretrained:
            raise UserError(
                "distillation: a pretrained base is trained by adapters, which online distillation does not share yet; "
                "train the teacher first, and the student with DistillationSystem"
            )
        self.teacher_decay = teacher_decay
        self.statistics = running_statistics(self.model)
        terms = self.objective.terms
        if teacher_codec is None:
            if teacher_objective:
                raise UserError("distillation: the average of the student learns by no objective of its own; drop it")
            self.teacher = copy.deepcopy(self.model).requires_grad_(False)
            self.teacher_objective = None
        else:
            left_out = {name for name, term in terms.items() if isinstance(term, TapTerm | Adversarial)}
            own = {name: value for name, value in objective.items() if name not in left_out}
            self.teacher = AEIC(teacher_codec, decoder).to(memory_format=torch.channels_last)
            self.teacher_objective = Objective(own if teacher_objective is None else teacher_objective)
            self.teacher_objective.bind(self.teacher)
            if self.teacher_objective.adversary:
                raise UserError("distillation: the teacher has no adversary; give a teacher_objective without it")
        if self.teacher.rate_levels != self.model.rate_levels:
            raise UserError("distillation: give the teacher's codec the student's rate_levels")
        self.objective.bind(self.model, self.teacher)
        check_read(self.objective.teacher_taps, "TeacherSystem")

    def load_start(self) -> None:
        super().load_start()
        if self.teacher_objective is None:
            self.teacher.load_state_dict(self.model.state_dict())

    @property
    def replayable(self) -> bool:
        return False  # the teacher has losses to log and weights of its own to average

    def teacher_taps(self, x: Tensor, level: Tensor | None = None) -> dict[str, Tensor]:
        """The teacher's taps of images (B, 3, H, W). A teacher that learns has its loss and its gradient here."""
        names = self.objective.teacher_taps
        if self.teacher_objective is None:
            with torch.no_grad():
                return self.teacher.eval().compute_taps(x, names, level)
        declared = {tap.name for tap in self.teacher.taps}
        output = self.teacher(x, level, [name for name in names if name not in declared])
        loss = self.teacher_objective({"image": x}, output, None, self.global_step)
        self.manual_backward(loss.total / self.optimization.accumulate)
        terms = {f"teacher/{name}": value for name, value in ({"loss": loss.total} | loss.terms).items()}
        self.guard.see(terms, [])
        self.log_at_step("train", terms)
        return {name: output.taps[name].detach() for name in names}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        players = super().configure_optimizers()
        if self.teacher_objective is not None:
            # A group of its own, since gradients are clipped by group.
            theirs = set(self.teacher.parameters())
            (group,) = players[0].param_groups
            group["params"] = [p for p in group["params"] if p not in theirs]
            players[0].add_param_group({"params": list(self.teacher.parameters())})
        return players

    def step_players(self) -> None:
        before = self.global_step
        super().step_players()
        if self.global_step == before:  # skipped
            return
        if self.teacher_objective is None:
            self._average()
        elif self.global_step % QUANTILE_INTERVAL == 0:
            self.teacher.prior.update_quantiles()

    @torch.no_grad()
    def _average(self) -> None:
        ours, theirs = (
            [*model.parameters(), *map(model.get_buffer, self.statistics)] for model in (self.model, self.teacher)
        )
        average_in(theirs, ours, self.teacher_decay, self.global_step)
        averaged = {id(tensor) for tensor in theirs}
        for buffer, own in zip(self.teacher.buffers(), self.model.buffers(), strict=True):
            if id(buffer) not in averaged:
                buffer.copy_(own)
