"""JPEG, WebP, AVIF and JPEG XL at matched bytes: what a newcomer needs beside the metrics of a learned codec.

For every image the quality setting is searched whose file is the largest that does not exceed a given number of bytes.
A codec that cannot make an image so small gives its smallest file, which is flagged (`over_target`), and the result
says so: nothing is scaled down, since another resolution would be another codec.
"""

import io
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, features

from aeic_lightning.bitstream.container import bytes_within, check_rate
from aeic_lightning.errors import UserError
from aeic_lightning.extras import require
from aeic_lightning.files import file_name
from aeic_lightning.study.curves import check_same_images
from aeic_lightning.study.evaluate import Progress
from aeic_lightning.study.measurement import Images, Measurement, Sample
from aeic_lightning.study.results import Result
from datamodules.base import ImageFiles


@dataclass(frozen=True)
class Codec:
    """How Pillow is asked for a file: settings that make files small, with one thread, at 4:2:0 where it applies."""

    format: str
    qualities: range
    options: dict[str, Any]

    def encode(self, image: Image.Image, quality: int) -> bytes:
        """A whole file, without metadata."""
        buffer = io.BytesIO()
        image.save(buffer, self.format, quality=quality, **self.options)
        return buffer.getvalue()

    def decode(self, data: bytes) -> torch.Tensor:
        """uint8 (3, H, W)."""
        with Image.open(io.BytesIO(data), formats=[self.format]) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


CODECS = {
    "jpeg": Codec("JPEG", range(1, 101), {"optimize": True, "progressive": True, "subsampling": "4:2:0"}),
    "webp": Codec("WEBP", range(101), {"method": 6}),
    "avif": Codec("AVIF", range(101), {"speed": 4, "subsampling": "4:2:0", "max_threads": 1}),
    # Quality 100 is another mode of the plugin, for lossless files.
    "jxl": Codec("JXL", range(100), {"effort": 9, "num_threads": 1}),
}


@dataclass(frozen=True)
class Target:
    """The bytes that each image may have.

    Attributes:
        label: bits per pixel, or the name of the result whose bytes are matched.
        bytes: from name, height and width of an image.
    """

    label: float | str
    bytes: Callable[[str, int, int], int]

    @property
    def name(self) -> str:
        """In words."""
        return self.label if isinstance(self.label, str) else f"{self.label:g} bpp"


def bpp_target(bpp: float) -> Target:
    """The same bits per pixel for every image."""
    check_rate(bpp)
    return Target(bpp, lambda name, height, width: bytes_within(bpp, height, width))


def like_target(result: Result) -> Target:
    """The bytes of each image's file in a result. Raises UserError for a result without files."""
    sizes = {image["name"]: image.get("bytes") for image in result.images}
    lacking = next((name for name, size in sizes.items() if size is None), None) if sizes else ""
    if lacking is not None:
        raise UserError(
            f"{result.name} has no bytes{f' of {lacking!r}' if lacking else ''}: its bpp_estimate is no file to match; "
            "evaluate its checkpoint"
        )
    return Target(result.name, lambda name, height, width: cast(int, sizes[name]))


def images_like(results: Sequence[Result], images: Images | None = None) -> Images:
    """The originals of results: `images` if given, else the PNG files that they have beside their reconstructions.

    Raises UserError if they are not the images that the results were measured on.
    """
    check_same_images(results)
    first = results[0]
    if images is None:
        paths = {}
        for row in first.images:
            if (path := first.original(row["name"])) is None:
                raise UserError(
                    f"{first.name} has no original of {row['name']!r} beside its reconstructions; give --images"
                )
            paths[row["name"]] = path
        images = Images(ImageFiles(list(paths.values()), list(paths)))
    known = {row["name"]: row["crc32"] for row in first.images}
    if set(images.names) != set(known):
        raise UserError(f"{first.name} was measured on other images, such as {min(set(images.names) ^ set(known))!r}")
    for name, x in images:
        if zlib.crc32(x.numpy().tobytes()) != known[name]:
            raise UserError(
                f"{name}: other pixels than {first.name} was measured on; was it cropped (--max-size), or converted?"
            )
    return images


class Search:
    """Files of one image by quality, each made once."""

    def __init__(self, codec: Codec, image: Image.Image) -> None:
        self.codec = codec
        self.image = image
        self.files: dict[int, bytes] = {}

    def size(self, quality: int) -> int:
        """Bytes at a quality."""
        if quality not in self.files:
            self.files[quality] = self.codec.encode(self.image, quality)
        return len(self.files[quality])

    def within(self, target: int) -> tuple[int, bool]:
        """The quality whose file is the largest within `target` bytes, and whether there is one; else the smallest.

        Sizes grow with the quality but for small steps back, which the last lines look beyond.
        """
        qualities = self.codec.qualities
        low, high = -1, len(qualities)  # the file at `low` fits, that at `high` does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.size(qualities[middle]) <= target else (low, middle)
        if low < 0:
            return min(qualities[:3], key=self.size), False
        around = [q for q in qualities[low : low + 3] if self.size(q) <= target]
        return max(around, key=lambda q: (self.size(q), q)), True


def anchors(
    names: Sequence[str],
    targets: Sequence[Target],
    images: Images,
    measure: Measurement,
    pictures: Path | None = None,
    quiet: bool = False,
) -> Iterator[Result]:
    """A result for every codec and target.

    Args:
        names: of `CODECS`.
        targets: how small the files must be.
        images: what is coded.
        measure: the metrics.
        pictures: folder for originals and reconstructions, a sub-folder each.
        quiet: print nothing.

    Raises UserError for a codec that is unknown, or that this Pillow does not have.
    """
    for name in names:
        check_codec(name)
    for name in names:
        codec = CODECS[name]
        chosen: list[dict[str, tuple[bytes, int, int, bool]]] = [{} for _ in targets]
        for number, (image_name, x) in enumerate(images, 1):
            if not quiet:
                print(f"{name}: searching [{number}/{len(images)}] {image_name}", flush=True)
            search = Search(codec, Image.fromarray(x.permute(1, 2, 0).numpy()))
            for target, files in zip(targets, chosen, strict=True):
                wanted = target.bytes(image_name, *x.shape[1:])
                quality, fits = search.within(wanted)
                files[image_name] = (search.files[quality], quality, wanted, fits)
        for target, files in zip(targets, chosen, strict=True):
            folder = pictures / file_name(f"{name} at {target.name}".replace("/", "_")) if pictures else None
            progress = Progress(len(images), folder, quiet, f"{name} at {target.name} ")
            fields = measure.of(_samples(codec, images, files), progress.see)
            fields["notes"] += _notes(name, target, codec, files)
            fields["versions"] |= library(name)
            yield Result(
                name=f"{name} at {target.name}",
                kind="anchor",
                labels={"codec": name, "target": target.label},
                pictures=progress.written,
                **fields,
            )


def _samples(codec: Codec, images: Images, files: dict[str, tuple[bytes, int, int, bool]]) -> Iterator[Sample]:
    for name, x in images:
        data, quality, target, fits = files[name]
        picture = Image.fromarray(x.permute(1, 2, 0).numpy())
        began = time.perf_counter()
        codec.encode(picture, quality)
        encoded = time.perf_counter()
        x_hat = codec.decode(data)
        decoded = time.perf_counter()
        columns = {"quality": quality, "bytes_target": target, "over_target": not fits}
        columns |= {"encode_seconds": encoded - began, "decode_seconds": decoded - encoded}
        yield Sample(name, x, x_hat, len(data), columns=columns)


def _notes(name: str, target: Target, codec: Codec, files: dict[str, tuple[bytes, int, int, bool]]) -> list[str]:
    settings = ", ".join(f"{key} {value}" for key, value in codec.options.items())
    notes = [f"{name}: Pillow with {settings}; the largest file within the target"]
    over = [len(data) / max(wanted, 1) for data, _, wanted, fits in files.values() if not fits]
    if over:
        most = f"{min(over):.2f} to {max(over):.2f}" if len(over) > 1 else f"{over[0]:.2f}"
        notes.append(
            f"{name} at {target.name}: cannot be as small as that on {len(over)} of {len(files)} images; its smallest "
            f"files have {most} times the bytes"
        )
    return notes


def check_codec(name: str) -> None:
    """Raise UserError unless this Pillow writes the codec."""
    if name not in CODECS:
        raise UserError(f"no codec {name!r}; there are {', '.join(CODECS)}")
    library(name)


def library(name: str) -> dict[str, str]:
    """The library behind a codec and its version. Raises UserError where it is missing."""
    if name == "jxl":
        require("JPEG XL", "pillow_jxl")
        import pillow_jxl  # noqa: F401 (registers itself with Pillow)

        return {"pillow-jxl-plugin": version("pillow-jxl-plugin")}
    libraries = {
        "jpeg": ("libjpeg_turbo", "libjpeg-turbo"),
        "webp": ("webp", "libwebp"),
        "avif": ("avif", "libavif"),
    }
    feature, title = libraries[name]
    found = features.version(feature)
    if found is None and name != "jpeg":
        raise UserError(f"this Pillow was built without {title}: pip install --upgrade pillow")
    return {title: found or "another libjpeg"}
