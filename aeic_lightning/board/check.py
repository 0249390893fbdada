"""A submission decoded and measured anew, and its claims beside what was found."""

import hashlib
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aeic_lightning.board.isolation import CommandError, Limits, kind_of, run
from aeic_lightning.board.submission import MEAN, Submission, digest, number, refused_unseen
from aeic_lightning.metrics.pixels import psnr
from aeic_lightning.metrics.table import find_metric
from aeic_lightning.study.measurement import TIMES, Images, Measurement, Sample
from aeic_lightning.study.results import Result

UNROUNDED = {"bytes": 1e-9, "bpp": 1e-9, "psnr": 1e-9}
"""What a figure may differ by beside its rounding; others by `OF_NETWORKS`: sums in another order elsewhere."""
OF_NETWORKS = 1e-5
RATE_DIGITS = 4
MIRRORED_BYTES, MIRRORED_DB = 1.5, 3.0
"""How much worse the mirrored image of the set may be coded: by a factor, and in dB of PSNR."""


@dataclass
class Checked:
    """What the board found.

    Attributes:
        name: of the submission.
        submission: None where it could not be read.
        result: measured anew; None if it was refused before.
        reasons: for the refusal; empty where everything is as claimed.
        isolation: key of `isolation.WORDS`.
        encoder: what is known of the encoder, in words.
    """

    name: str
    submission: Submission | None = None
    result: Result | None = None
    reasons: list[str] = field(default_factory=list)
    isolation: str = "none"
    encoder: str = ""


def check(
    submission: Submission,
    images: Images,
    measure: Measurement,
    others: dict[str, str],
    hidden: Sequence[Path],
    *,
    limits: Limits,
    unsafe: bool = False,
) -> Checked:
    """Decode and measure a submission, and compare it with what it claims.

    Args:
        submission: what was handed in.
        images: the originals.
        measure: the metrics.
        others: see `refused_unseen`; an accepted submission is added.
        hidden: what commands must not read: originals, other submissions.
        limits: of a command for one image.
        unsafe: run commands without isolation where there is none.

    Raises UserError where commands cannot be isolated.
    """
    found = Checked(submission.name, submission, isolation=kind_of(submission.container, unsafe))
    found.reasons = refused_unseen(submission, images, others)
    if found.reasons:
        return found
    bench = Bench(submission, limits, found.isolation, [*hidden, submission.folder / "streams"])
    try:
        fields = measure.of(decoded(bench, images))
        found.encoder = encoder_in_words(bench, images, fields["images"])
    except CommandError as error:
        found.reasons.append(str(error))
        return found
    found.result = Result(name=submission.name, kind="files", labels=dict(submission.labels), **fields)
    found.reasons = false_claims(submission.claims, found.result)
    if not found.reasons:
        others[digest({name: path.read_bytes() for name, path in submission.streams().items()})] = submission.name
    return found


@dataclass(frozen=True)
class Bench:
    """Where a submission's commands run, each time in a new empty folder."""

    submission: Submission
    limits: Limits
    isolation: str
    hidden: Sequence[Path]

    def decode(self, stream: bytes, name: str) -> np.ndarray:
        """The picture of a stream, uint8 (H, W, 3). Raises CommandError, which names the image."""
        return self._run(self.submission.decode, "stream", stream, "picture.png", name, read_picture)

    def encode(self, image: Tensor, name: str) -> bytes:
        """The stream of an image, uint8 (3, H, W). Raises CommandError, which names the image."""
        assert self.submission.encode is not None
        return self._run(self.submission.encode, "image.png", image, "stream", name, Path.read_bytes)

    def _run(self, command: list[str], given_as: str, given: Any, made: str, name: str, read: Any) -> Any:
        with tempfile.TemporaryDirectory(prefix="board-") as folder:
            scratch = Path(folder, "work")
            scratch.mkdir()
            if isinstance(given, bytes):
                (scratch / given_as).write_bytes(given)
            else:
                Image.fromarray(given.permute(1, 2, 0).numpy()).save(scratch / given_as)
            own = self.submission
            which = "decode" if command is own.decode else "encode"
            try:
                run(
                    command, scratch, limits=self.limits, kind=self.isolation, environment=own.environment,
                    container=own.container, decoder=own.decoder, hidden=self.hidden,
                )  # fmt: skip
                if (scratch / made).is_symlink() or not (scratch / made).is_file():
                    raise CommandError(f"writes no {made}")
                return read(scratch / made)
            except CommandError as error:
                raise CommandError(f"{name}: the {which} command {error}") from None


def read_picture(path: Path) -> np.ndarray:
    """An 8-bit RGB picture, uint8 (H, W, 3). Raises CommandError for any other file."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            wide = image.format == "PNG" and _bit_depth(path) > 8
            if image.mode != "RGB" or wide or "transparency" in image.info:
                depth = ", 16 bits a channel" if wide else ""
                raise CommandError(f"writes a picture of mode {image.mode}{depth}; what is measured is 8-bit RGB")
            return np.array(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CommandError(f"writes a picture.png that is no PNG ({' '.join(str(error).split())[:120]})") from None


def _bit_depth(path: Path) -> int:
    """Of the PNG's header, since Pillow opens 16-bit RGB as RGB."""
    with path.open("rb") as file:
        return file.read(25)[24]


def decoded(bench: Bench, images: Images) -> Iterator[Sample]:
    """Each image by way of its stream, which alone the command gets; in an order that tells it nothing.

    Raises CommandError where a picture has another size, equals that of another image, or is not the same twice.
    """
    streams = {name: path.read_bytes() for name, path in bench.submission.streams().items()}
    originals = dict(images)
    by_picture: dict[bytes, str] = {}
    order = sorted(streams, key=lambda name: hashlib.sha256(streams[name]).digest())
    for name in order:
        x = originals[name]
        began = time.perf_counter()
        picture = bench.decode(streams[name], name)
        seconds = time.perf_counter() - began
        height, width = x.shape[1:]
        if picture.shape[:2] != (height, width):
            raise CommandError(f"{name}: the picture is {picture.shape[1]}x{picture.shape[0]}, not {width}x{height}")
        other = by_picture.setdefault(hashlib.sha256(picture.tobytes()).digest(), name)
        if other != name:
            raise CommandError(f"the streams of {other} and {name} decode to the same picture")
        if name == order[0] and not np.array_equal(bench.decode(streams[name], name), picture):
            raise CommandError(f"{name}: the decode command gives another picture each time")
        x_hat = torch.from_numpy(picture).permute(2, 0, 1).contiguous()
        yield Sample(name, x, x_hat, len(streams[name]), columns={"decode_seconds": seconds})


def encoder_in_words(bench: Bench, images: Images, rows: list[dict[str, Any]]) -> str:
    """What the encode command shows: whether it makes the streams, and codes an image that nobody could hand in.

    That image is one of the set, mirrored: a decoder that has learned the set, and not to decode, fails here. Raises
    CommandError for an encoder that makes other streams, and for one that codes the mirrored image far worse.
    """
    if bench.submission.encode is None:
        return "not handed in: whether the decoder has learned these images is not known"
    row = min(rows, key=lambda row: row["height"] * row["width"])
    name, x = next((name, x) for name, x in images if name == row["name"])
    again = bench.encode(x, name)
    if abs(len(again) - row["bytes"]) > 0.02 * row["bytes"]:
        raise CommandError(f"{name}: the encode command makes a stream of {len(again)} bytes, not {row['bytes']}")
    mirrored, called = x.flip(2).contiguous(), f"{name} mirrored"
    stream = bench.encode(mirrored, called)
    x_hat = torch.from_numpy(bench.decode(stream, called)).permute(2, 0, 1)
    if x_hat.shape != x.shape:
        raise CommandError(f"{called}: decoded to another size")
    reached = psnr(x_hat[None], mirrored[None]).item()
    if reached < row["psnr"] - MIRRORED_DB or len(stream) > MIRRORED_BYTES * row["bytes"]:
        raise CommandError(
            f"an image that was not handed in is coded far worse: {called} has {len(stream)} bytes at {reached:.2f} "
            f"dB, {name} {row['bytes']} at {row['psnr']:.2f} dB"
        )
    same = "the same stream" if again == bench.submission.streams()[name].read_bytes() else "a stream of the same size"
    return f"makes {same} of {name}; {called}: {len(stream)} bytes, {reached:.2f} dB"


# ---------------------------------------------------------------------- claims


def false_claims(claims: dict[str, dict[str, str]], result: Result) -> list[str]:
    """What of a claimed table is not what was measured; a figure is right if it is the measured one, rounded."""
    measured: dict[str, dict[str, float]] = {row["name"]: row for row in result.images}
    mean_of_bytes = math.fsum(row["bytes"] for row in result.images) / len(result.images)
    measured[MEAN] = {name: value["mean"] for name, value in result.metrics.items()} | {"bytes": mean_of_bytes}
    measured[MEAN] |= {name: value["value"] for name, value in result.set_metrics.items()}
    claimed = {column for row in claims.values() for column in row}
    reasons = []
    if "bpp" not in claims[MEAN] or not any(find_metric(column) for column in claimed):
        reasons.append("claims.csv claims no bpp, or no metric")
    for column in sorted(claimed):
        if column in TIMES or column not in {name for row in measured.values() for name in row}:
            more = "; a rate is of files, not of likelihoods" if column == "bpp_estimate" else ""
            reasons.append(f"{column} is claimed and not measured here{more}")
            continue
        reasons += _false_in(column, claims, measured)
    return reasons


def _false_in(column: str, claims: dict[str, dict[str, str]], measured: dict[str, dict[str, float]]) -> list[str]:
    metric = find_metric(column)
    digits = RATE_DIGITS if column == "bpp" else metric.digits if metric else 0
    wrong = []
    for name, row in claims.items():
        text, value = row.get(column, ""), measured[name].get(column)
        found = number(text)
        if value is None:
            wrong += [] if not text else [f"{name}: {text} is claimed and nothing measured"]
        elif math.isinf(value):
            wrong += [] if text == "inf" else [f"{name}: {text or 'nothing'} is claimed, inf is measured"]
        elif found is None or found[1] < digits:
            wrong.append(f"{name}: {text or 'nothing'} is claimed; write a number with at least {digits} decimals")
        elif abs(found[0] - value) > 0.5 * 10.0 ** -found[1] + UNROUNDED.get(column, OF_NETWORKS):
            wrong.append(f"{name}: {text} is claimed, {value:.{max(found[1], digits) + 2}f} is measured")
    if not wrong:
        return []
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    return [f"{column} of {wrong[0]}{more}"]
