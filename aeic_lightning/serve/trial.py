"""One photograph through a model and through conventional codecs at the same bytes."""

import base64
import io
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from aeic_lightning.codec import Codec
from aeic_lightning.errors import UserError
from aeic_lightning.images import read_image, to_rgb
from aeic_lightning.metrics.pixels import psnr
from aeic_lightning.study.anchors import CODECS, Search, check_codec

MAX_FILE = 20_000_000
"""Bytes of an uploaded file."""
MAX_PIXELS = 50_000_000
"""Pixels of an uploaded photograph."""
CODED_PIXELS = 786_432
"""Larger photographs are reduced to about this many pixels (1024 x 768) before they are coded."""
TITLES = {"jpeg": "JPEG", "webp": "WebP", "avif": "AVIF"}


@dataclass(frozen=True)
class Coded:
    """What one codec made of the photograph.

    Attributes:
        name: for a reader.
        bytes: size of the file.
        bpp: bits per pixel of the photograph as it was coded.
        psnr: dB.
        encode_seconds, decode_seconds: by the clock. Of a conventional codec at the setting that was found.
        over: whether the codec has no file as small as the model's; then this is its smallest.
        picture: data URL of the decoded picture, PNG.
    """

    name: str
    bytes: int
    bpp: float
    psnr: float | None
    encode_seconds: float
    decode_seconds: float
    over: bool
    picture: str


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


def trial(codec: Codec, name: str, data: bytes, bpp: float) -> dict[str, Any]:
    """Code a photograph. Raises UserError for what is no photograph, and for a rate that the model cannot reach.

    Args:
        codec: the model.
        name: of the model.
        data: the photograph's file.
        bpp: bits per pixel at most.
    """
    image = prepare(data)
    height, width = image.shape[:2]
    began = time.perf_counter()
    stream = codec.compress(image, bpp=bpp)
    encoded = time.perf_counter()
    decoded = codec.decompress_array(stream)
    ended = time.perf_counter()
    coded = [_coded(name, image, decoded, len(stream), encoded - began, ended - encoded)]
    for kind, title in TITLES.items():
        try:
            check_codec(kind)
        except UserError:  # this Pillow was built without it
            continue
        coded.append(_conventional(kind, title, image, len(stream)))
    return {
        "width": width,
        "height": height,
        "original_bytes": len(data),
        "original": _url(image),
        "codecs": [asdict(one) for one in coded],
    }


def _conventional(kind: str, title: str, image: np.ndarray, target: int) -> Coded:
    codec, picture = CODECS[kind], Image.fromarray(image)
    quality, fits = Search(codec, picture).within(target)
    began = time.perf_counter()
    data = codec.encode(picture, quality)
    encoded = time.perf_counter()
    decoded = codec.decode(data).permute(1, 2, 0).numpy()
    seconds = encoded - began, time.perf_counter() - encoded
    return _coded(title, image, decoded, len(data), *seconds, over=not fits)


def _coded(
    name: str, image: np.ndarray, decoded: np.ndarray, size: int, encode: float, decode: float, over: bool = False
) -> Coded:
    original, picture = (torch.from_numpy(np.array(one)).permute(2, 0, 1) for one in (image, decoded))
    quality = float(psnr(original[None], picture[None])[0])
    finite = quality if np.isfinite(quality) else None  # an exact copy
    return Coded(name, size, 8 * size / image[..., 0].size, finite, encode, decode, over, _url(decoded))


def _url(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
