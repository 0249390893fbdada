"""Dual-side feature distillation: L_enc on the codec's taps, L_dec on the decoder's.

teacher   x ─> y, z, phi, y_hat ─> l_T, l_res ─> h_0 ... h_8, l_0      (frozen)
                │  encoder side       │  decoder side
              ||·||²                ||·||²
                │                     │
student   f(y, z, phi, y_hat) ─> f(l_T, l_res) ─> f(h_0 ... h_8, l_0)  (f: a learnable 1x1 convolution, one per tap)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import reduce
from operator import add
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from aeic_lightning.errors import UserError
from aeic_lightning.losses.term import Term
from aeic_lightning.models.base import CompressionModel
from aeic_lightning.models.taps import Side, Tap, find_taps


@dataclass(frozen=True)
class TapMatch:
    """A student's tap and the teacher's that it is compared with.

    Args:
        tap: the student's tap: a declared one, a pattern of declared ones such as h_*, or the path of a module.
        side: `encoder` or `decoder`; default: the tap's own.
        weight: weight inside of its term's sum.
        teacher_tap: the teacher's tap, where it has another name.
        normalise: divide both taps by their root mean square first. For hidden states of a U-Net that is trained from
            scratch: all that reads them begins with a GroupNorm, so their scale is free, drifts by orders of
            magnitude in training, and differs between teacher and student. A shared pretrained base holds it fixed.
    """

    tap: str
    side: Side | None = None
    weight: float = 1.0
    teacher_tap: str | None = None
    normalise: bool = False

    @classmethod
    def of(cls, value: "TapMatch | Mapping[str, Any] | str") -> "TapMatch":
        """From a name, or from a mapping as it stands in YAML."""
        if isinstance(value, TapMatch):
            return value
        try:
            return cls(value) if isinstance(value, str) else cls(**value)
        except TypeError as error:
            raise UserError(f"distillation: {value} is no tap: write a name, or {{tap: y, weight: 1.0}}") from error


class FeatureDistillation(Term):
    """For each tap the mean of (teacher - f(student))^2, f being a learnable 1x1 convolution; summed with the weights.

    A tap with `normalise` compares teacher / rms(teacher) with f(student / rms(student)), rms over the whole tensor.
    The square is averaged over the elements of the tap, so that a weight means the same at every width and resolution.
    A projection starts as the identity as far as the widths allow. Each tap's own loss is logged as distill/SIDE/TAP.

    Args:
        side: `encoder` (L_enc) or `decoder` (L_dec).
        taps: names or `TapMatch`es; default: all that the model declares on this side.
    """

    tag = "distill/{name}"

    def __init__(self, side: Side, taps: Sequence[TapMatch | dict[str, Any] | str] | None = None) -> None:
        super().__init__()
        if side not in ("encoder", "decoder"):
            raise UserError(f"distillation: side is encoder or decoder, not {side!r}")
        if taps is not None and not taps:
            raise UserError("distillation: no taps; list at least one, or leave `taps` out for all of the side")
        self.side: Side = side
        self.wanted = None if taps is None else [TapMatch.of(tap) for tap in taps]
        self.matches: list[TapMatch] = []
        self.projections = nn.ModuleDict()

    def bind(self, student: CompressionModel, teacher: CompressionModel | None) -> None:
        """Check every tap against both models, and build the projections."""
        if teacher is None:
            raise UserError("distillation: there is no teacher; train with DistillationSystem, which names one")
        declared = student.taps
        wanted = self.wanted or [TapMatch(tap.name) for tap in declared if tap.side == self.side]
        self.matches = [named for match in wanted for named in _expand(match, [tap.name for tap in declared])]
        ours = find_taps(student, declared, self.student_taps, "student")
        theirs = find_taps(teacher, teacher.taps, self.teacher_taps, "teacher")
        for match in self.matches:
            tap, other = ours[match.tap], theirs[match.teacher_tap or match.tap]
            _check_side(match, tap, self.side)
            if _key(match) in self.projections:
                raise UserError(f"distillation: tap {match.tap!r} is listed twice on the {self.side} side; keep one")
            projection = nn.Conv2d(tap.channels, other.channels, 1)
            nn.init.dirac_(projection.weight)
            nn.init.zeros_(cast(Tensor, projection.bias))
            self.projections[_key(match)] = projection

    @property
    def student_taps(self) -> list[str]:
        return [match.tap for match in self.matches]

    @property
    def teacher_taps(self) -> list[str]:
        return [match.teacher_tap or match.tap for match in self.matches]

    def check_shapes(self, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> None:
        """Raise UserError where two taps differ in resolution: a projection changes channels alone."""
        for match in self.matches:
            ours, theirs = student[match.tap], teacher[match.teacher_tap or match.tap]
            if ours.shape[2:] != theirs.shape[2:]:
                raise UserError(
                    f"distillation: tap {match.tap!r} is {tuple(ours.shape[2:])} in the student but "
                    f"{tuple(theirs.shape[2:])} in the teacher; use the same stride or another tap"
                )

    def forward(
        self, batch: dict[str, Any], output: Any, teacher: dict[str, Tensor] | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert teacher is not None, "`bind` asks for a teacher"
        weighted, losses = [], {}
        for match in self.matches:
            ours, theirs = output.taps[match.tap], teacher[match.teacher_tap or match.tap]
            if match.normalise:
                ours, theirs = _unit_scale(ours), _unit_scale(theirs)
            loss = F.mse_loss(self.projections[_key(match)](ours), theirs)
            losses[f"distill/{self.side}/{match.tap}"] = loss
            weighted.append(match.weight * loss)
        return reduce(add, weighted), losses


def _expand(match: TapMatch, declared: list[str]) -> list[TapMatch]:
    names = [name for name in declared if fnmatchcase(name, match.tap)]
    return [replace(match, tap=name) for name in names] or [match]


def _check_side(match: TapMatch, tap: Tap, side: Side) -> None:
    if tap.side != side:
        raise UserError(f"distillation: tap {match.tap!r} is on the {tap.side} side; move it to a term of that side")
    if match.side not in (None, side):
        raise UserError(f"distillation: tap {match.tap!r} is on the {side} side; write side: {side}")


def _key(match: TapMatch) -> str:
    return match.tap.replace(".", "-")


def _unit_scale(tap: Tensor) -> Tensor:
    return tap * tap.square().mean().clamp_min(1e-12).rsqrt()
