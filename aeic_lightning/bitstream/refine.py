"""Refinement at the sender: y and z of one image, moved by gradient steps towards what its receiver makes best use of.

g_a is one pass for all images. A sender with time starts from its y and z and descends on the loss that the model was
trained on,

    J = lambda w(level) bits / pixels + distortion(x, x_hat),

through rounding (straight-through) and the fixed receiver, as in Campos et al. 2019, "Content Adaptive Optimization for
Neural Image Compression". The stream is an ordinary one: only its symbols differ.
"""

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from aeic_lightning.bitstream import wire
from aeic_lightning.bitstream.stream import Bitstream, Encoded, dial_position
from aeic_lightning.errors import UserError
from aeic_lightning.losses.objective import SHIPPED, Objective, objective_settings, read_objective
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.decoder import OneStepDecoder
from aeic_lightning.torch_settings import own_settings

RATE = 0.02
"""First step of Adam, in steps of the quantiser; it falls linearly to zero."""
WINDOW = 512
"""Side of the pieces that a large image is refined in, in pixels: memory is that of one piece."""
TRIES = 3
"""Rate levels that are refined, at most, to fill a file of a given size."""


class Refinement:
    """Writes the streams of a `Bitstream` after `effort` gradient steps for each image.

    The same image gives the same bytes on one machine with one number of threads.

    Args:
        bitstream: of an AEIC whole with its receiver.
        objective: what the model was trained on, as in YAML. Of its terms, those of single pictures are the distortion;
            the adversary and distillation have no part in it.
        effort: gradient steps, 1 or more.

    Raises UserError for a model that makes no picture, or whose objective is not known or weighs no bits.
    """

    def __init__(self, bitstream: Bitstream, objective: Mapping[str, Any] | None, effort: int) -> None:
        if effort < 1:
            raise UserError(f"effort is {effort}; it is a number of gradient steps, 0 or more")
        model = bitstream.model
        if not (isinstance(model, AEIC) and isinstance(model.decoder, OneStepDecoder)):
            raise UserError("effort is for models whose receiver makes a picture; leave it out")
        self.bitstream, self.model, self.effort = bitstream, model, effort
        self.weight, self.distortion = _parts(objective)
        self.distortion.to(next(model.parameters()).device).eval().requires_grad_(False)

    def encode_batch(self, x: Tensor, **rate: Any) -> list[Encoded]:
        """As `encode_at`, for images (B, 3, H, W), one after the other."""
        return [self.encode_at(image, **rate) for image in x.split(1)]

    @own_settings()
    def encode_at(
        self, x: Tensor, *, bpp: float | None = None, max_bytes: int | None = None, level: float | None = None
    ) -> Encoded:
        """The refined file of one image (1, 3, H, W), with the arguments and errors of `Bitstream.encode_at`.

        At a level, J is never above that of the file without refinement; within a size, the distortion is not. A size
        takes up to three refinements: refined files are smaller, so a higher level fits.
        """
        wire.check_order(bpp=bpp, max_bytes=max_bytes, level=level)
        if bpp is not None:
            max_bytes = wire.bytes_within(bpp, *x.shape[2:])
        if max_bytes is None:
            plain = self.bitstream.encode_at(x, level=level)
            return min(plain, self._refined(x, plain.level), key=lambda encoded: self.loss(x, encoded))
        best = plain = self.bitstream.encode_at(x, max_bytes=max_bytes)
        seen = set()
        while plain.level not in seen and len(seen) < TRIES:
            seen.add(plain.level)
            refined = self._refined(x, plain.level)
            if len(refined.data) <= max_bytes and self.distance(x, refined) < self.distance(x, best):
                best = refined
            try:
                plain = self.bitstream.encode_at(x, max_bytes=len(plain.data) * max_bytes // len(refined.data))
            except UserError:  # not even the lowest level is so small
                break
        return best

    def loss(self, x: Tensor, encoded: Encoded) -> float:
        """J of a file, by its bytes and the receiver's picture."""
        bits = 8 * len(encoded.data) / (x.shape[2] * x.shape[3])
        return self._lambda(encoded.level) * bits + self.distance(x, encoded)

    @torch.no_grad()
    def distance(self, x: Tensor, encoded: Encoded) -> float:
        """The distortion of the picture of a file."""
        x = x.to(next(self.model.parameters()).device)
        height, width = x.shape[2:]
        x_hat = self.model.reconstruct(encoded.y_hat.to(x.device), encoded.level)
        total = 0.0
        for rows, columns in _windows(height, width, WINDOW):
            piece = x[..., rows, columns]
            total += self._distortion(piece, x_hat[..., rows, columns]).item() * piece[0, 0].numel()
        return total / (height * width)

    def _refined(self, x: Tensor, level: float | None) -> Encoded:
        sender, codec = self.bitstream.sender, self.model.codec
        device = next(self.model.parameters()).device
        y, z = (part.clone().to(device) for part in sender.at_level(sender.analyse(x), level))
        x, height, width = x.to(device), *x.shape[2:]
        side = codec.stride * codec.z_stride
        tall, wide = (size * codec.stride for size in y.shape[2:])
        for rows, columns in _windows(tall, wide, max(WINDOW // side, 1) * side):
            of_y, of_z = (
                (..., *(slice(part.start // step, -(-part.stop // step)) for part in (rows, columns)))
                for step in (codec.stride, side)
            )
            y[of_y], z[of_z] = self._descend(x[..., rows, columns], y[of_y], z[of_z], level)
        return self.bitstream.encode_latents(y, z, height, width, dial_position(level, self.bitstream.levels))

    @torch.enable_grad()
    def _descend(self, x: Tensor, y: Tensor, z: Tensor, level: float | None) -> tuple[Tensor, Tensor]:
        """y_hat and z_hat of the best of `effort` + 1 points, for an image and its latents before quantisation."""
        codec, pixels = self.model.codec, x.shape[2] * x.shape[3]
        of_level, weight = codec.levels(1, level), self._lambda(level) / pixels
        moved = [y.clone().requires_grad_(), z.clone().requires_grad_()]
        adam = torch.optim.Adam(moved, lr=RATE)
        least, best = float("inf"), (y, z)
        for step in range(self.effort + 1):
            output = codec.from_latents(moved[0], moved[1], of_level)
            x_hat = self.model.decoder(output.l_T, output.l_res).x_hat
            loss = weight * (output.bits_y + output.bits_z).sum() + self._distortion(x, x_hat)
            if loss.item() < least:
                # As they are decoded: the exact means are a little off these, and must not tip a value near a half.
                least, best = loss.item(), (output.y_hat.detach(), codec.prior.quantise(moved[1]).detach())
            if step < self.effort:
                adam.param_groups[0]["lr"] = RATE * (1 - step / self.effort)
                for part, gradient in zip(moved, torch.autograd.grad(loss, moved, allow_unused=True), strict=True):
                    part.grad = gradient
                adam.step()
        return best

    def _distortion(self, x: Tensor, x_hat: Tensor) -> Tensor:
        x_hat = x_hat[..., : x.shape[2], : x.shape[3]]
        return self.distortion({"image": x}, SimpleNamespace(x_hat=x_hat)).total

    def _lambda(self, level: float | None) -> float:
        gains = self.model.codec.gains
        of_level = self.model.codec.levels(1, level)
        return self.weight * (1.0 if gains is None or of_level is None else gains.rate_weight(of_level).item())


def _parts(objective: Mapping[str, Any] | None) -> tuple[float, Objective]:
    """lambda, and the distortion."""
    if not objective:
        raise UserError(
            "it is not known what this model was trained on, by which effort weighs bits and distortion; take the "
            "checkpoint in its run folder, a folder that `export` wrote, or a model that ships"
        )
    settings = objective_settings({"objective": objective})
    own = {name for name, term in settings.items() if isinstance(term, Mapping) and term.get("class_path")}
    entries = read_objective({name: term for name, term in settings.items() if name in SHIPPED and name not in own})
    rate = entries.get("rate")
    if rate is None or rate.arguments.get("target") is not None:
        raise UserError(
            "effort weighs bits by objective.rate, and this model was trained "
            + ("without it" if rate is None else "to a target, which gives no weight")
            + "; leave effort out"
        )
    terms = {name: settings[name] for name, entry in entries.items() if entry.kind.of_single_images}
    return rate.weight, Objective(terms)


def _windows(height: int, width: int, side: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of square pieces that cover an image."""
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield slice(top, min(top + side, height)), slice(left, min(left + side, width))
