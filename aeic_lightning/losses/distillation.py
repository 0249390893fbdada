"""Dual-side feature distillation: L_enc on the codec's taps, L_dec on the decoder's.

teacher   x ─> y, z, phi, y_hat ─> l_T, l_res ─> h_0 ... h_8, l_0      (frozen)
                │  encoder side       │  decoder side
              ||·||²                ||·||²
                │                     │
student   f(y, z, phi, y_hat) ─> f(l_T, l_res) ─> f(h_0 ... h_8, l_0)  (f: one learnable 1x1 layer per pair)
"""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from aeic_lightning.errors import UserError
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import DecoderConfig


@dataclass
class Pair:
    """One match between a teacher's and a student's tap.

    Args:
        tap: the student's tap: y, z, phi, y_hat; l_T, l_res, l_0, h_0, h_1, ...
        side: `encoder` (part of L_enc) or `decoder` (part of L_dec).
        weight: weight inside of its side's sum.
        teacher_tap: the teacher's tap, where it has another name.
        normalise: divide both taps by their root mean square first. For hidden states of a U-Net that is trained from
            scratch: all that reads them begins with a GroupNorm, so their scale is free, drifts by orders of
            magnitude in training, and differs between teacher and student. A shared pretrained base holds it fixed.
    """

    tap: str
    side: Literal["encoder", "decoder"]
    weight: float = 1.0
    teacher_tap: str | None = None
    normalise: bool = False


def tap_channels(codec: CodecConfig, decoder: DecoderConfig) -> dict[str, int]:
    """Channels of every tap, by name."""
    channels = codec.channels
    taps = {"y": channels, "z": channels // 2, "phi": channels, "y_hat": channels}
    taps |= {"l_T": codec.l_T_channels, "l_res": codec.l_res_channels, "l_0": codec.l_res_channels}
    return taps | {f"h_{n}": width for n, width in enumerate(decoder.unet.hidden_channels)}


ENCODER_TAPS = ("y", "z", "phi", "y_hat")


class DistillationLoss(nn.Module):
    """L_enc and L_dec: for each pair the mean of (teacher - f(student))^2, f being a learnable 1x1 convolution.

    A pair with `normalise` compares teacher / rms(teacher) with f(student / rms(student)), rms over the whole tensor.

    The square is averaged over the elements of the tap, so that a weight means the same at every width and resolution.
    A projection starts as the identity as far as the widths allow.

    Args:
        pairs: the matches.
        student, teacher: channels of the taps of each (`tap_channels`).
    """

    def __init__(self, pairs: list[Pair], student: dict[str, int], teacher: dict[str, int]) -> None:
        super().__init__()
        if not pairs:
            raise UserError("distillation: no pairs; list at least one tap, or train with StudentSystem")
        self.pairs = pairs
        self.projections = nn.ModuleDict()
        for pair in pairs:
            teacher_tap = pair.teacher_tap or pair.tap
            for name, known, role in ((pair.tap, student, "student"), (teacher_tap, teacher, "teacher")):
                if name not in known:
                    near = get_close_matches(name, known, n=1)
                    hint = f"did you mean {near[0]}?" if near else "taps are " + ", ".join(known)
                    raise UserError(f"distillation: the {role} has no tap {name!r}; {hint}")
                if (name in ENCODER_TAPS) != (pair.side == "encoder"):
                    side = "encoder" if name in ENCODER_TAPS else "decoder"
                    raise UserError(f"distillation: tap {name!r} lies on the {side} side; write side: {side}")
            key = f"{pair.side}_{pair.tap}"
            if key in self.projections:
                raise UserError(f"distillation: tap {pair.tap!r} is listed twice on the {pair.side} side; keep one")
            projection = nn.Conv2d(student[pair.tap], teacher[teacher_tap], 1)
            nn.init.dirac_(projection.weight)
            nn.init.zeros_(projection.bias)
            self.projections[key] = projection

    @property
    def sides(self) -> set[str]:
        """Which sides have pairs."""
        return {pair.side for pair in self.pairs}

    def check_shapes(self, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> None:
        """Raise UserError where a pair differs in resolution: a projection changes channels alone."""
        for pair in self.pairs:
            ours, theirs = student[pair.tap], teacher[pair.teacher_tap or pair.tap]
            if ours.shape[2:] != theirs.shape[2:]:
                raise UserError(
                    f"distillation: tap {pair.tap!r} is {tuple(ours.shape[2:])} in the student but "
                    f"{tuple(theirs.shape[2:])} in the teacher; use the same stride or another pair"
                )

    def forward(
        self, student: dict[str, Tensor], teacher: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Taps by name -> the weighted sum of each side that has pairs, and each tap's own loss as `side/tap`."""
        sums: dict[str, Tensor] = {}
        taps: dict[str, Tensor] = {}
        for pair in self.pairs:
            ours, theirs = student[pair.tap], teacher[pair.teacher_tap or pair.tap]
            if pair.normalise:
                ours, theirs = _unit_scale(ours), _unit_scale(theirs)
            loss = F.mse_loss(self.projections[f"{pair.side}_{pair.tap}"](ours), theirs)
            taps[f"{pair.side}/{pair.tap}"] = loss
            sums[pair.side] = sums.get(pair.side, 0) + pair.weight * loss
        return sums, taps


def _unit_scale(tap: Tensor) -> Tensor:
    return tap * tap.square().mean().clamp_min(1e-12).rsqrt()
