"""One photograph through a model and through conventional codecs at the same bytes; a stream back into a picture."""

import base64
import io
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from aeic_lightning.bitstream.wire import bytes_within
from aeic_lightning.codec import Codec
from aeic_lightning.errors import UserError
from aeic_lightning.images import from_uint8, read_image, to_rgb
from aeic_lightning.metrics.features import LPIPS
from aeic_lightning.metrics.pixels import psnr
from aeic_lightning.study.anchors import Anchor, Search, check_codec, decoded, find_file, open_search

MAX_FILE = 20_000_000
"""Bytes of an uploaded file."""
MAX_PIXELS = 50_000_000
"""Pixels of an uploaded photograph."""
CODED_PIXELS = 786_432
"""Larger photographs are reduced to about this many pixels (1024 x 768) before they are coded."""
TITLES = {"jpeg": "JPEG", "webp": "WebP", "avif": "AVIF"}
REALISM = 0.5
"""Of the second picture that a model with both decoders shows of its file."""
SCALES = (1, 2, 4)
"""A conventional codec may code the picture at 1/scale of its size, as people do at low rates."""

Event = dict[str, Any]
"""What has happened: {"doing": words}, {"original": ...}, {"codec": ...} or {"note": words}."""


@dataclass(frozen=True)
class Coded:
    """What one codec made of the photograph.

    Attributes:
        name: for a reader.
        bytes: size of the file.
        bpp: bits per pixel of the photograph as it was coded.
        picture: data URL of the decoded picture, PNG.
        psnr: dB; None without an original, and for an exact copy.
        lpips: on EfficientNet-Lite2, on which no loss is computed; lower is better. None without an original.
        encode_seconds, decode_seconds: by the clock. Of a conventional codec at the setting that was found.
        over: whether the codec has no file as small as the model's; then this is its smallest.
        stream: data URL of the model's file.
    """

    name: str
    bytes: int
    bpp: float
    picture: str
    psnr: float | None = None
    lpips: float | None = None
    encode_seconds: float | None = None
    decode_seconds: float | None = None
    over: bool = False
    stream: str | None = None


def prepare(data: bytes) -> np.ndarray:
    """The photograph as uint8 (H, W, 3), reduced to `CODED_PIXELS`. Raises UserError for what is no photograph."""
    if len(data) > MAX_FILE:
        raise UserError(f"the file has {len(data) / 1e6:.0f} MB; at most {MAX_FILE / 1e6:.0f} MB are taken")
    image = read_image(data, "the photograph", MAX_PIXELS)
    height, width = image.shape[:2]
    scale = (CODED_PIXELS / (height * width)) ** 0.5
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image = np.array(to_rgb(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)))
    if max(image.shape[:2]) > 8192:
        raise UserError("a side of the photograph is longer than 8192 pixels after it was reduced; crop it")
    return image


def trial(codec: Codec, name: str, image: np.ndarray, bpp: float) -> Iterator[Event]:
    """Code a photograph, uint8 (H, W, 3), and say what happens.

    Args:
        codec: the model.
        name: of the model.
        image: as `prepare` gives it.
        bpp: bits per pixel at most; where the model cannot make so small a file, its smallest is taken, with a note.
    """
    original = Original(image)
    yield {"original": {"width": original.width, "height": original.height, "picture": _url(image)}}
    yield {"doing": f"{name}: compressing"}
    began = time.perf_counter()
    try:
        stream = codec.compress(image, bpp=bpp)
    except UserError:  # too few bits for this photograph
        began = time.perf_counter()
        stream = codec.compress(image, level=0 if codec.levels else None)
    encoded = time.perf_counter()
    yield {"doing": f"{name}: decompressing {len(stream)} bytes"}
    picture = codec.decompress_array(stream)
    times = encoded - began, time.perf_counter() - encoded
    yield {"doing": f"{name}: measuring the picture"}
    over = len(stream) > bytes_within(bpp, original.height, original.width)
    made = original.coded(name, picture, len(stream), times, over)
    if over:
        yield {"note": f"{made.bpp:.4f} bpp is the lowest rate that {name} reaches for this photograph; aim: {bpp:.3f}"}
    yield {"codec": asdict(made) | {"stream": _data_url(stream, "application/octet-stream"), "over": False}}
    if codec.has_realistic:
        yield {"doing": f"{name}: the same file, more realistic"}
        began = time.perf_counter()
        picture = codec.decompress_array(stream, realism=REALISM)
        seconds = time.perf_counter() - began
        yield {"codec": asdict(original.coded(_realistic(name), picture, len(stream), (None, seconds), False))}
    for kind, title in TITLES.items():
        try:
            check_codec(kind)
        except UserError:  # this Pillow was built without it
            continue
        yield {"doing": f"{title}: looking for the best file of {len(stream)} bytes"}
        yield {"codec": asdict(_conventional(kind, title, original, len(stream)))}


def opened(codec: Codec, name: str, stream: bytes) -> Iterator[Event]:
    """The picture of a stream that the model wrote, and the realistic one. Raises UserError for a damaged stream."""
    yield {"doing": f"{name}: decompressing {len(stream)} bytes"}
    shown = {name: 0.0} | ({_realistic(name): REALISM} if codec.has_realistic else {})
    for title, realism in shown.items():
        began = time.perf_counter()
        picture = codec.decompress_array(stream, realism)
        seconds = time.perf_counter() - began
        height, width = picture.shape[:2]
        bpp = 8 * len(stream) / (height * width)
        made = Coded(title, len(stream), bpp, _url(picture), decode_seconds=seconds)
        yield {"codec": asdict(made) | {"stream": _data_url(stream, "application/octet-stream")}}


def _realistic(name: str) -> str:
    """The name of the model's second picture of the same file."""
    return f"{name}, realism {REALISM:g}"


class Original:
    """The photograph, uint8 (H, W, 3), and the distance of pictures from it."""

    def __init__(self, image: np.ndarray) -> None:
        self.height, self.width = image.shape[:2]
        self.tensor = _tensor(image)

    def coded(self, name: str, picture: np.ndarray, size: int, times: tuple[float | None, float], over: bool) -> Coded:
        """A codec's picture with its metrics."""
        x_hat = _tensor(picture)
        quality = float(psnr(self.tensor[None], x_hat[None])[0])
        finite = quality if np.isfinite(quality) else None  # an exact copy
        bpp = 8 * size / (self.height * self.width)
        return Coded(name, size, bpp, _url(picture), finite, self.distance(x_hat), *times, over)

    @torch.inference_mode()
    def distance(self, x_hat: torch.Tensor) -> float:
        """LPIPS on EfficientNet-Lite2 of a picture, uint8 (3, H, W)."""
        return float(_lpips()(from_uint8(x_hat)[None], from_uint8(self.tensor)[None]))


def _conventional(kind: str, title: str, original: Original, target: int) -> Coded:
    """A codec's best picture by LPIPS within `target` bytes, of those at each of `SCALES`; else its smallest file."""
    searches = [(scale, open_search(Anchor(kind, scale), original.tensor)) for scale in SCALES]
    fitting = [(scale, search) for scale, search in searches if _smallest(search) <= target]
    samples = []
    for scale, search in fitting or searches[-1:]:
        file = find_file(search, target)
        samples.append((scale, file, decoded(Anchor(kind, scale), title, original.tensor, file)))
    scale, file, sample = min(samples, key=lambda made: original.distance(made[2].x_hat))
    picture = sample.x_hat.permute(1, 2, 0).numpy()
    times = file.seconds, sample.columns["decode_seconds"]
    name = title if scale == 1 else f"{title} at 1/{scale} size"
    return original.coded(name, picture, len(file.data), times, not file.fits)


def _smallest(search: Search) -> int:
    return min(map(search.size, search.codec.qualities[:3]))


@lru_cache(maxsize=1)
def _lpips() -> LPIPS:
    return LPIPS("lite2").eval()


def _tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _url(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", compress_level=1)
    return _data_url(buffer.getvalue(), "image/png")


def _data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
