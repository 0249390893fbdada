"""A submission as its folder says it, and what can be refused before anything is decoded.

NAME/submission.yaml    name, decode, ...: the fields of `Submission`
NAME/streams/           one file an image, named like the image
NAME/decoder/           what the decode command needs, if anything: the same for all images
NAME/claims.csv         the claimed table: a row an image and a row `mean`
"""

import csv
import hashlib
import math
import os
import shlex
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from aeic_lightning.errors import UserError, did_you_mean
from aeic_lightning.files import SUFFIXES, image_names
from aeic_lightning.images import read_image
from aeic_lightning.study.measurement import Images
from aeic_lightning.study.results import Label

FILE = "submission.yaml"
MEAN = "mean"
"""The row of `claims.csv` that holds the means."""


@dataclass(frozen=True)
class Submission:
    """What a submitter says.

    Attributes:
        folder: of the submission.
        name: of the row.
        decode: command that reads the file `stream` and the folder `decoder/`, and writes `picture.png`.
        encode: command that reads `image.png` and writes `stream`; None if the encoder is kept back.
        environment: a virtual environment, relative to the folder; None for the one that runs the board.
        container: an image instead.
        labels: of the result: codec, lambda, target ...; rates of one codec make a curve.
        authors, link: for the page.
        claims: rows of the claimed table: image or `mean` -> column -> text.
    """

    folder: Path
    name: str
    decode: list[str]
    encode: list[str] | None = None
    environment: Path | None = None
    container: str | None = None
    labels: dict[str, Label] = field(default_factory=dict)
    authors: str = ""
    link: str = ""
    claims: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def decoder(self) -> Path | None:
        """The folder of the decoder, if there is one."""
        folder = self.folder / "decoder"
        return folder if folder.is_dir() else None

    @property
    def decoder_bytes(self) -> int:
        """Of all files of the decoder, programs and weights of its environment not included."""
        return sum(path.stat().st_size for path in _files(self.decoder)) if self.decoder else 0

    def streams(self) -> dict[str, Path]:
        """Image -> its file."""
        root = self.folder / "streams"
        paths = _files(root)
        return dict(zip(image_names(root, paths), paths, strict=True))


# ---------------------------------------------------------------------- reading


def find_submissions(folder: Path) -> list[Path]:
    """Folders of submissions, by name. Raises UserError where there is none."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder} of submissions")
    found = sorted(path.parent for path in folder.glob(f"*/{FILE}"))
    if not found:
        raise UserError(f"{folder} holds no submission: none of its folders has a {FILE}; see docs/howto_board.md")
    return found


def read_submission(folder: Path) -> Submission:
    """Raises UserError for what cannot be read."""
    path = folder / FILE
    try:
        given = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{FILE} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(given, dict):
        raise UserError(f"{FILE} holds no settings; see docs/howto_board.md")
    known = ("name", "decode", "encode", "environment", "container", "labels", "authors", "link")
    if unknown := [key for key in given if key not in known]:
        raise UserError(f"{FILE}: {unknown[0]} is no setting{did_you_mean(str(unknown[0]), known)}")
    if given.get("environment") and given.get("container"):
        raise UserError(f"{FILE} names an environment and a container; leave one out")
    labels = given.get("labels") or {}
    if not isinstance(labels, dict) or not all(isinstance(value, int | float | str) for value in labels.values()):
        raise UserError(f"{FILE}: labels are names with a number or a word each")
    environment = given.get("environment")
    if environment is not None:
        environment = Path(os.path.abspath(folder / str(environment)))
        if not (environment / "bin").is_dir():
            raise UserError(f"{FILE}: {environment} is no virtual environment; make it with its own instructions first")
    return Submission(
        folder=folder,
        name=str(given.get("name") or folder.name),
        decode=_command(given, "decode"),
        encode=_command(given, "encode") if given.get("encode") else None,
        environment=environment,
        container=given.get("container"),
        labels=labels,
        authors=str(given.get("authors") or ""),
        link=str(given.get("link") or ""),
        claims=_claims(folder / "claims.csv"),
    )


def _command(given: dict[str, Any], key: str) -> list[str]:
    words = given.get(key)
    words = shlex.split(words) if isinstance(words, str) else words
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise UserError(f"{FILE}: {key} is a command, such as: python decoder/decode.py stream picture.png")
    return words


def _claims(path: Path) -> dict[str, dict[str, str]]:
    try:
        with path.open(newline="") as file:
            table = csv.DictReader(file)
            rows = [({key: (value or "").strip() for key, value in row.items() if key}) for row in table]
            columns = table.fieldnames or []
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"claims.csv cannot be read: {error}") from error
    if "image" not in columns or "bytes" not in columns:
        raise UserError("claims.csv lacks the columns image and bytes")
    twice = [name for name, count in Counter(row["image"] for row in rows).items() if count > 1]
    if twice:
        raise UserError(f"claims.csv has two rows of {twice[0]}")
    return {row.pop("image"): row for row in rows}


# ---------------------------------------------------------------------- what files alone show


def refused_unseen(submission: Submission, images: Images, others: dict[str, str]) -> list[str]:
    """Reasons to refuse a submission that are seen before its command runs.

    Args:
        submission: what was handed in.
        images: of the board.
        others: `digest` of the streams of submissions that are as they claim, and their names.
    """
    links = _outward_links(submission.folder)
    if links:
        return [f"{links[0].relative_to(submission.folder)} is a link that leads out of the submission"]
    try:
        streams = submission.streams()
    except UserError as error:
        return [str(error)]
    reasons = _other_names("stream", list(streams), images.names)
    reasons += _other_names("row of claims.csv", [name for name in submission.claims if name != MEAN], images.names)
    if MEAN not in submission.claims:
        reasons.append("claims.csv has no row of the means")
    contents = {name: path.read_bytes() for name, path in streams.items()}
    reasons += [f"the stream of {name} is empty" for name, data in contents.items() if not data]
    seen: dict[bytes, str] = {}
    for name, data in contents.items():
        if data and (first := seen.setdefault(data, name)) != name:
            reasons.append(f"{first} and {name} have the same stream")
    if first := others.get(digest(contents)):
        reasons.append(f"its streams are those of {first}")
    reasons += _wrong_sizes(submission.claims, {name: len(data) for name, data in contents.items()})
    return reasons + _decoder_holds(submission, images, set(contents.values()))


def digest(streams: dict[str, bytes]) -> str:
    """Of all streams of a submission, whatever their files are called."""
    return hashlib.sha256(b"".join(hashlib.sha256(streams[name]).digest() for name in sorted(streams))).hexdigest()


def _other_names(what: str, given: Sequence[str], names: Sequence[str]) -> list[str]:
    reasons = []
    if lacking := sorted(set(names) - set(given)):
        reasons.append(f"{len(lacking)} of {len(names)} images have no {what}, such as {lacking[0]}")
    if extra := sorted(set(given) - set(names)):
        reasons.append(f"a {what} belongs to no image: {extra[0]}")
    return reasons


def _wrong_sizes(claims: dict[str, dict[str, str]], sizes: dict[str, int]) -> list[str]:
    reasons = []
    for name, size in sizes.items():
        claimed = claims.get(name, {}).get("bytes")
        if claimed is not None and claimed != str(size):
            reasons.append(f"{name}: {claimed or 'no'} bytes are claimed, its file has {size}, header included")
    return reasons


def _decoder_holds(submission: Submission, images: Images, streams: set[bytes]) -> list[str]:
    """Originals and streams among the decoder's files, where they lie open."""
    if submission.decoder is None:
        return []
    originals = {zlib.crc32(x.permute(1, 2, 0).numpy().tobytes()): name for name, x in images}
    reasons = []
    for path in _files(submission.decoder):
        shown = path.relative_to(submission.folder)
        if path.stat().st_size <= 1 << 26 and path.read_bytes() in streams:
            reasons.append(f"{shown} is one of the streams")
        if path.suffix.lower() in SUFFIXES:
            try:
                name = originals.get(zlib.crc32(read_image(path).tobytes()))
            except UserError:
                continue
            if name is not None:
                reasons.append(f"{shown} is the original of {name}")
    return reasons


def number(text: str) -> tuple[float, int] | None:
    """A claimed figure and its decimals; None for what is no plain decimal number."""
    whole, _, decimals = text.partition(".")
    if not (whole.lstrip("-").isdecimal() and (decimals.isdecimal() or not decimals)):
        return None
    value = float(text)
    return (value, len(decimals)) if math.isfinite(value) else None


def _outward_links(root: Path) -> list[Path]:
    """Links below streams/ and decoder/, and these themselves, that lead out of the submission."""
    own = root.resolve()
    parts = [root / "streams", root / "decoder"]
    below = [path for part in parts if part.is_dir() for path in part.rglob("*")]
    return sorted(path for path in (*parts, *below) if path.is_symlink() and not path.resolve().is_relative_to(own))


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
