"""JPEG, WebP, AVIF and JPEG XL at matched bytes: what a newcomer needs beside the metrics of a learned codec.

For every image the quality setting is searched whose file is the largest that does not exceed a given number of bytes.
A codec that cannot make an image so small gives its smallest file, which is flagged (`over_target`), and the result
names the image. A codec may code the picture at 1/2, 1/3 or 1/4 of its size, as people do at low rates; the receiver
enlarges it with Lanczos or with a trained network (`Anchor`). Each of these is an anchor with a name of its own.
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

from aeic_lightning.bitstream.wire import bytes_within, check_rate
from aeic_lightning.errors import UserError
from aeic_lightning.extras import require
from aeic_lightning.files import file_name
from aeic_lightning.study.evaluate import Progress
from aeic_lightning.study.measurement import Images, Measurement, Sample
from aeic_lightning.study.results import Result, check_same_images
from aeic_lightning.study.upscale import LANCZOS, check_upscaler, enlarge, shrink
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
class Anchor:
    """A codec on the picture at 1/scale of its size, and how the receiver enlarges it.

    The file is not charged for the size of the original, of which the receiver lacks no more than the remainder of a
    division by `scale`.
    """

    codec: str
    scale: int = 1
    upscaler: str = LANCZOS

    @classmethod
    def parse(cls, text: str) -> "Anchor":
        """Of `CODEC`, `CODEC/SCALE` or `CODEC/SCALE+UPSCALER`.

        Raises UserError for a codec or upscaler that is unknown or missing here, and for another scale than 1, 2, 3, 4.
        """
        whole, _, upscaler = text.partition("+")
        codec, slash, scale = whole.partition("/")
        check_codec(codec)
        check_upscaler(upscaler or LANCZOS)
        if slash and scale not in SCALES:
            raise UserError(
                f"{text}: write CODEC/N+UPSCALER, where N is one of {', '.join(SCALES)}: at 1/N of the size"
            )
        anchor = cls(codec, int(scale or 1), upscaler or LANCZOS)
        if anchor.scale == 1 and upscaler:
            raise UserError(f"{text}: at its own size a picture is not enlarged; write {codec}/4+{upscaler}")
        return anchor

    @property
    def name(self) -> str:
        """As `parse` takes it, in the shortest form."""
        scale = f"/{self.scale}" if self.scale > 1 else ""
        return self.codec + scale + (f"+{self.upscaler}" if self.upscaler != LANCZOS else "")

    @property
    def described(self) -> str:
        """The settings, for a note."""
        settings = ", ".join(f"{key} {value}" for key, value in CODECS[self.codec].options.items())
        if self.scale == 1:
            return f"Pillow with {settings}"
        how = "Lanczos" if self.upscaler == LANCZOS else f"the network {self.upscaler}"
        return f"Pillow with {settings}, of the picture at 1/{self.scale} (Lanczos), enlarged with {how}"


SCALES = ("1", "2", "3", "4")


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
    """Files of one image by quality, each made once; and the seconds that each took."""

    def __init__(self, codec: Codec, image: Image.Image, scale: int = 1) -> None:
        began = time.perf_counter()
        self.codec = codec
        self.image = shrink(image, scale)
        self.shrinking = time.perf_counter() - began
        self.files: dict[int, bytes] = {}
        self.seconds: dict[int, float] = {}

    def size(self, quality: int) -> int:
        """Bytes at a quality."""
        if quality not in self.files:
            began = time.perf_counter()
            self.files[quality] = self.codec.encode(self.image, quality)
            self.seconds[quality] = self.shrinking + time.perf_counter() - began
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
        names: codecs, as `Anchor.parse` takes them.
        targets: how small the files must be.
        images: what is coded.
        measure: the metrics.
        pictures: folder for originals and reconstructions, a sub-folder each.
        quiet: print nothing.

    Raises UserError for a codec that is unknown, or that this Pillow does not have.
    """
    for anchor in [Anchor.parse(name) for name in names]:
        name = anchor.name
        chosen: list[dict[str, File]] = [{} for _ in targets]
        for number, (image_name, x) in enumerate(images, 1):
            if not quiet:
                print(f"{name}: searching [{number}/{len(images)}] {image_name}", flush=True)
            search = open_search(anchor, x)
            for target, files in zip(targets, chosen, strict=True):
                files[image_name] = find_file(search, target.bytes(image_name, *x.shape[1:]))
        for target, files in zip(targets, chosen, strict=True):
            folder = pictures / file_name(f"{name} at {target.name}".replace("/", "_")) if pictures else None
            progress = Progress(len(images), folder, quiet, f"{name} at {target.name} ")
            fields = measure.of((decoded(anchor, n, x, files[n]) for n, x in images), progress.see)
            fields["notes"] += [f"{name}: {anchor.described}; the largest file within the target"]
            fields["notes"] += over_target_notes(f"{name} at {target.name}", fields["images"])
            fields["versions"] |= library(anchor.codec)
            yield Result(
                name=f"{name} at {target.name}",
                kind="anchor",
                labels={"codec": name, "target": target.label},
                pictures=progress.written,
                **fields,
            )


@dataclass(frozen=True)
class File:
    """A file of one image.

    Attributes:
        data: all of it.
        quality: the codec's setting.
        target: the bytes that it may have.
        fits: whether it has no more.
        seconds: that shrinking and coding took.
    """

    data: bytes
    quality: int
    target: int
    fits: bool
    seconds: float


def open_search(anchor: Anchor, x: torch.Tensor) -> Search:
    """The search for files of an image, uint8 (3, H, W)."""
    return Search(CODECS[anchor.codec], Image.fromarray(x.permute(1, 2, 0).numpy()), anchor.scale)


def find_file(search: Search, target: int) -> File:
    """The largest file of at most `target` bytes, else the smallest."""
    quality, fits = search.within(target)
    return File(search.files[quality], quality, target, fits, search.seconds[quality])


def decoded(anchor: Anchor, name: str, x: torch.Tensor, file: File) -> Sample:
    """What the receiver makes of a file of the image `x`, uint8 (3, H, W), at its size."""
    began = time.perf_counter()
    x_hat = CODECS[anchor.codec].decode(file.data)
    if anchor.scale > 1:
        small = Image.fromarray(x_hat.permute(1, 2, 0).numpy())
        large = enlarge(small, (x.shape[2], x.shape[1]), anchor.upscaler)
        x_hat = torch.from_numpy(np.array(large)).permute(2, 0, 1).contiguous()
    columns = {"quality": file.quality, "bytes_target": file.target, "over_target": not file.fits}
    columns |= {"encode_seconds": file.seconds, "decode_seconds": time.perf_counter() - began}
    return Sample(name, x, x_hat, len(file.data), columns=columns)


def over_target_notes(name: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """A note that counts and names the images whose smallest file is over the target; none where there is none."""
    over = {row["name"]: row["bytes"] / max(row["bytes_target"], 1) for row in rows if row.get("over_target")}
    if not over:
        return []
    low, high = min(over.values()), max(over.values())
    most = f"{low:.2f} to {high:.2f}" if len(over) > 1 else f"{low:.2f}"
    return [
        f"{name}: cannot be as small as that on {len(over)} of {len(rows)} images; its smallest files have {most} "
        f"times the bytes: {', '.join(sorted(over))}"
    ]


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
