"""Terms that compare taps of student and teacher: which taps, checked before step 0; projections; the distances.

teacher   x ─> y, z, phi, y_hat ─> l_T, l_res ─> h_0 ... h_8, l_0      (frozen)
                │  encoder side       │  decoder side
              ||·||²                ||·||²
                │                     │
student   f(y, z, phi, y_hat) ─> f(l_T, l_res) ─> f(h_0 ... h_8, l_0)  (f: a learnable 1x1 convolution, one per tap)

`FeatureDistillation` is the dual-side distillation above: L_enc on the codec's taps, L_dec on the decoder's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import reduce
from operator import add
from typing import Any, cast

import torch
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


class TapTerm(Term):
    """A distance between taps of the student and the teacher's, summed over the taps with their weights.

    A subclass implements `distance`. Each tap's own loss is logged as distill/SIDE/TAP, followed by `label`.

    Args:
        side: `encoder` or `decoder`; default: taps of both.
        taps: names or `TapMatch`es; default: all that the model declares (on this side).
    """

    tag = "distill/{name}"
    label = ""
    projects = True
    """Whether the student's taps pass a learnable 1x1 convolution, one per tap, to the teacher's channels first. It
    starts as the identity as far as the widths allow."""

    by_channel = False
    """Whether the distance compares channel with channel, so that both taps need as many."""

    sees_scale = True
    """Whether the distance depends on the scale of a tap as a whole; `normalise` is refused where it does not."""

    def __init__(self, side: Side | None = None, taps: Sequence[TapMatch | dict[str, Any] | str] | None = None) -> None:
        super().__init__()
        if side not in (None, "encoder", "decoder"):
            raise UserError(f"distillation: side is encoder or decoder, not {side!r}")
        if taps is not None and not taps:
            raise UserError("distillation: no taps; list at least one, or leave `taps` out for all of the side")
        self.side: Side | None = side
        self.wanted = None if taps is None else [TapMatch.of(tap) for tap in taps]
        if not self.sees_scale and any(match.normalise for match in self.wanted or []):
            raise UserError(
                f"distillation: {type(self).__name__} does not depend on the scale of a tap; leave normalise out"
            )
        self.matches: list[TapMatch] = []
        self.sides: dict[str, Side] = {}
        self.projections = nn.ModuleDict()

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Taps (B, C, h, w), C of the two equal if the term projects -> a scalar."""
        raise NotImplementedError

    def find_student_taps(self, student: CompressionModel, teacher: CompressionModel | None = None) -> dict[str, Tap]:
        """Settle which taps are compared, and return the student's, by name. Raises UserError for one that it lacks."""
        declared = student.taps
        known = {tap.name for tap in teacher.taps} if teacher else set()
        # Taps of an encoder from elsewhere are compared where the teacher has them, or a `teacher_tap` is named.
        both = [tap for tap in declared if tap.path is None or tap.name in known]
        wanted = self.wanted or [TapMatch(tap.name) for tap in both if self.side in (None, tap.side)]
        self.sides = {}
        self.matches = [named for match in wanted for named in _expand(match, [tap.name for tap in declared])]
        taps = find_taps(student, declared, self.student_taps, "student")
        for match in self.matches:
            tap = taps[match.tap]
            _check_side(match, tap, self.side)
            if match.tap in self.sides:
                raise UserError(f"distillation: tap {match.tap!r} is listed twice on the {tap.side} side; keep one")
            self.sides[match.tap] = tap.side
        return taps

    def bind(self, student: CompressionModel, teacher: CompressionModel | None) -> None:
        """Check every tap against both models, and build the projections, if any."""
        if teacher is None:
            raise UserError("distillation: there is no teacher; train with DistillationSystem, which names one")
        ours = self.find_student_taps(student, teacher)
        theirs = find_taps(teacher, teacher.taps, self.teacher_taps, "teacher")
        for match in self.matches:
            tap, other = ours[match.tap], theirs[match.teacher_tap or match.tap]
            if tap.stride != other.stride:  # a projection changes channels alone
                raise UserError(
                    f"distillation: tap {match.tap!r} has a position for {tap.stride} pixels in the student, but "
                    f"{other.name!r} one for {other.stride} in the teacher; take taps of the same stride"
                )
            if not self.projects:
                if self.by_channel and tap.channels != other.channels:
                    raise UserError(
                        f"distillation: tap {match.tap!r} has {tap.channels} channels in the student and "
                        f"{other.channels} in the teacher; leave out projects: false"
                    )
                continue
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

    def forward(
        self, batch: dict[str, Any], output: Any, teacher: dict[str, Tensor] | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert teacher is not None, "`bind` asks for a teacher"
        weighted, losses = [], {}
        for match in self.matches:
            ours, theirs = output.taps[match.tap], teacher[match.teacher_tap or match.tap]
            if match.normalise:
                ours, theirs = _unit_scale(ours), _unit_scale(theirs)
            if self.projects:
                ours = self.projections[_key(match)](ours)
            loss = self.distance(ours, theirs)
            losses[f"distill/{self.sides[match.tap]}/{match.tap}{self.label}"] = loss
            weighted.append(match.weight * loss)
        return reduce(add, weighted), losses


def _expand(match: TapMatch, declared: list[str]) -> list[TapMatch]:
    names = [name for name in declared if fnmatchcase(name, match.tap)]
    return [replace(match, tap=name) for name in names] or [match]


def _check_side(match: TapMatch, tap: Tap, side: Side | None) -> None:
    if side not in (None, tap.side):
        raise UserError(f"distillation: tap {match.tap!r} is on the {tap.side} side; move it to a term of that side")
    if match.side not in (None, tap.side):
        raise UserError(f"distillation: tap {match.tap!r} is on the {tap.side} side; write side: {tap.side}")


def _key(match: TapMatch) -> str:
    return match.tap.replace(".", "-")


def _unit_scale(tap: Tensor) -> Tensor:
    return tap * tap.square().mean().clamp_min(1e-12).rsqrt()


class FeatureDistillation(TapTerm):
    """For each tap the mean of (teacher - f(student))^2, f being a learnable 1x1 convolution; summed with the weights.

    A tap with `normalise` compares teacher / rms(teacher) with f(student / rms(student)), rms over the whole tensor.
    The square is averaged over the elements of the tap, so that a weight means the same at every width and resolution.

    Args:
        side: `encoder` (L_enc) or `decoder` (L_dec).
        taps: see `TapTerm`.
        projects: whether f is there. Without it a tap has to become the teacher's own, which a receiver that stays as
            it is needs: f is free to undo a scale that this receiver does not, and no other term may hold it.
    """

    by_channel = True

    def __init__(
        self,
        side: Side | None = None,
        taps: Sequence[TapMatch | dict[str, Any] | str] | None = None,
        projects: bool = True,
    ) -> None:
        super().__init__(side, taps)
        self.projects = projects

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(student, teacher)


class CosineDistillation(TapTerm):
    """For each tap 1 - cos(f(student), teacher), the angle being that of the channels at one position; mean over the
    positions. f is a learnable 1x1 convolution. It does not see the length of the vectors; `normalise` changes how
    fast f learns, and how far its bias reaches.

    Args:
        side, taps: see `TapTerm`.
    """

    label = ".cosine"

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(student, teacher, dim=1).mean()


class AttentionTransfer(TapTerm):
    """For each tap ||a(student) - a(teacher)||^2, mean over the images: where an image has large activations.

    a is the sum of squares over the channels at each position, as one vector per image, divided by its norm (equation 2
    of the paper, with the square of its distance, so that the gradient stays finite at 0). Widths may differ without a
    projection. The term lies in [0, 2].

    Args:
        side, taps: see `TapTerm`.
    """

    label = ".attention"
    projects = False
    sees_scale = False

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (attention(student) - attention(teacher)).square().sum(1).mean()


def attention(tap: Tensor) -> Tensor:
    """(B, C, h, w) -> unit vectors (B, h w)."""
    return F.normalize(tap.square().sum(1).flatten(1), dim=1)


class RelationalDistillation(TapTerm):
    """For each tap how far relations among vectors of the student are from those among the teacher's.

    The vectors are a tap's channels at `examples` positions, evenly spaced over all images of the batch. Compared by
    the Huber loss are their mutual distances over the mean distance (equations 5 and 6), and the cosines of the angles
    that any two of them make at a third (equations 7 and 8). Widths may differ without a projection.

    Args:
        side, taps: see `TapTerm`.
        distance_weight: of the distances.
        angle_weight: of the angles; the paper has twice the weight of the distances.
        examples: largest number of vectors; work grows with the third power, unless `angle_weight` is 0.
    """

    label = ".relational"
    projects = False
    sees_scale = False

    def __init__(
        self,
        side: Side | None = None,
        taps: Sequence[TapMatch | dict[str, Any] | str] | None = None,
        distance_weight: float = 1.0,
        angle_weight: float = 2.0,
        examples: int = 32,
    ) -> None:
        super().__init__(side, taps)
        if examples < 3:
            raise UserError(f"relational: examples must be 3 or more, since an angle has three points, not {examples}")
        self.distance_weight, self.angle_weight, self.examples = distance_weight, angle_weight, examples

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        ours, theirs = self._vectors(student), self._vectors(teacher)
        loss = self.distance_weight * F.smooth_l1_loss(distances(ours), distances(theirs))
        if self.angle_weight:
            loss = loss + self.angle_weight * F.smooth_l1_loss(angles(ours), angles(theirs))
        return loss

    def _vectors(self, tap: Tensor) -> Tensor:
        vectors = tap.movedim(1, -1).flatten(0, 2).float()
        count = min(self.examples, len(vectors))
        return vectors[torch.arange(count, device=tap.device) * len(vectors) // count]


def distances(vectors: Tensor) -> Tensor:
    """(N, C) -> the N (N - 1) / 2 distances of the pairs, divided by their mean."""
    found = F.pdist(vectors)
    return found / found.mean().clamp_min(1e-12)


def angles(vectors: Tensor) -> Tensor:
    """(N, C) -> (N, N, N): at [i, j, k] the cosine of the angle at j between i and k; 0 if one of them is j."""
    ways = F.normalize(vectors[:, None] - vectors[None], dim=2).transpose(0, 1)
    return (ways @ ways.transpose(1, 2)).transpose(0, 1)
