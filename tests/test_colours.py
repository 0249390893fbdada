"""Colour profiles against the published equations of Display P3 and sRGB, and one way in for files and PIL images."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from aeic_lightning.codec import as_tensor
from aeic_lightning.errors import ImageWarning, UserError
from aeic_lightning.images import read_image, to_uint8

RNG = np.random.default_rng(3)
# Linear light to XYZ under D50 (Bradford), as profiles hold it: the columns are red, green and blue.
SRGB_TO_XYZ = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
P3_TO_XYZ = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])


def linear(v: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1, which Display P3 shares."""
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def coded(v: np.ndarray) -> np.ndarray:
    v = v.clip(0, 1)
    return np.where(v <= 0.0031308, v * 12.92, 1.055 * v ** (1 / 2.4) - 0.055)


def profile(matrix: np.ndarray, space: bytes = b"RGB ") -> bytes:
    """An ICC version 2 profile of three primaries, or of grey, with sRGB's curve, by the specification (ICC.1:2001)."""

    def fixed(v: float) -> bytes:
        return struct.pack(">i", round(v * 65536))

    curve = np.rint(linear(np.arange(1024) / 1023) * 65535).astype(">u2").tobytes()
    trc = b"curv\0\0\0\0" + struct.pack(">I", 1024) + curve
    white = b"XYZ \0\0\0\0" + fixed(0.9642) + fixed(1) + fixed(0.8249)
    tags = {b"wtpt": white, b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"made\0" + bytes(79)}
    if space == b"GRAY":
        tags[b"kTRC"] = trc
    else:
        for letter, column in zip(b"rgb", matrix.T, strict=True):
            tags[bytes([letter]) + b"XYZ"] = b"XYZ \0\0\0\0" + b"".join(map(fixed, column))
            tags[bytes([letter]) + b"TRC"] = trc
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = struct.pack(">I4sI4s4s4s", at + len(body), b"none", 0x02400000, b"mntr", space, b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + fixed(0.9642) + fixed(1) + fixed(0.8249) + bytes(48)
    return header + struct.pack(">I", len(tags)) + table + body


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PICTURE = RNG.integers(40, 216, (32, 48, 3), dtype=np.uint8)  # sRGB, and so within Display P3
IN_P3 = np.rint(255 * coded(linear(PICTURE / 255) @ (np.linalg.inv(P3_TO_XYZ) @ SRGB_TO_XYZ).T)).astype(np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF"])
def test_a_display_p3_picture_is_read_in_srgb(kind):
    assert abs(IN_P3.astype(int) - PICTURE).max() > 15, "the numbers alone are far from the colours"
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}.get(kind, {})
    data = saved(Image.fromarray(IN_P3), kind, icc_profile=profile(P3_TO_XYZ), **options)
    error = read_image(data).astype(int) - PICTURE
    assert np.sqrt((error**2).mean()) < (0.8 if kind != "AVIF" else 2)  # two roundings to 8 bits
    assert abs(error).max() <= (2 if kind != "AVIF" else 12)


def test_an_srgb_profile_changes_no_level():
    mine = profile(SRGB_TO_XYZ)
    theirs = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for icc in (mine, theirs):
        np.testing.assert_array_equal(read_image(saved(Image.fromarray(PICTURE), icc_profile=icc)), PICTURE)


def test_colours_under_an_alpha_channel_are_converted_and_laid_over_white():
    alpha = RNG.integers(0, 256, (32, 48), dtype=np.uint8)
    rgba = Image.fromarray(np.dstack([IN_P3, alpha]))
    read = read_image(saved(rgba, icc_profile=profile(P3_TO_XYZ)))
    part = alpha[..., None] / 255
    assert abs(read - (PICTURE * part + 255 * (1 - part))).max() <= 3


def test_palettes_and_grey_are_converted_too():
    index = Image.fromarray(IN_P3).quantize(16)
    expected = np.asarray(index.convert("RGB"))
    read = read_image(saved(index, icc_profile=profile(P3_TO_XYZ))).astype(int)
    right = 255 * coded(linear(expected / 255) @ (np.linalg.inv(SRGB_TO_XYZ) @ P3_TO_XYZ).T)
    assert abs(read - right).max() <= 2
    grey = Image.fromarray(PICTURE[..., 0])
    for icc in (profile(P3_TO_XYZ), profile(P3_TO_XYZ, b"GRAY")):  # whose curve is sRGB's
        read = read_image(saved(grey, icc_profile=icc)).astype(int)
        assert abs(read - PICTURE[..., :1]).max() <= 2


@pytest.mark.parametrize(
    ("icc", "words"),
    [
        (b"no profile at all" * 20, "damaged"),
        (profile(P3_TO_XYZ)[:200], "damaged"),
        (profile(P3_TO_XYZ, b"GRAY"), "one of L"),
    ],
)
def test_a_profile_that_cannot_be_used_is_ignored_with_a_warning(icc, words):
    data = saved(Image.fromarray(IN_P3), "TIFF", icc_profile=icc)
    with pytest.warns(ImageWarning, match=f"holiday: its colour profile is {words}.*ignored"):
        np.testing.assert_array_equal(read_image(data, "holiday"), IN_P3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_an_opened_image_is_read_as_its_file(kind):
    """Orientation and colours: what `Codec.compress(Image.open(...))` codes is what `compress` does."""
    exif = Image.Exif()
    exif[274] = 6
    data = saved(Image.fromarray(IN_P3), kind, exif=exif, icc_profile=profile(P3_TO_XYZ))
    file = read_image(data)
    assert file.shape == (48, 32, 3)
    np.testing.assert_array_equal(to_uint8(as_tensor(Image.open(io.BytesIO(data))))[0].permute(1, 2, 0), file)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "GIF"])
def test_an_opened_image_that_is_cut_short_is_one_line(kind):
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = saved(noise, kind)
    image = Image.open(io.BytesIO(data[: len(data) // 2]))
    with pytest.raises(UserError, match=r"cannot decode the image.*cut short or damaged") as caught:
        as_tensor(image)
    assert "\n" not in str(caught.value)


def test_an_opened_image_with_broken_exif_is_read():
    image = Image.fromarray(PICTURE)
    image.info["exif"] = b"Exif\0\0MM\0*\0\0\xff\xff"
    np.testing.assert_array_equal(to_uint8(as_tensor(image)), to_uint8(as_tensor(PICTURE)))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_first_of_several_pictures_is_taken_and_said(kind):
    first, second = Image.new("RGB", (16, 16), (200, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 200))
    data = saved(first, kind, save_all=True, append_images=[second, first])
    with pytest.warns(ImageWarning, match="moving: the first of its 3 pictures is taken"):
        pixels = read_image(data, "moving")
    assert abs(pixels.astype(int) - (200, 0, 0)).max() <= 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(saved(first, kind))
        read_image(saved(first, "MPO", append_images=[second], save_all=True))  # a photograph and its depth


def png_with(**chunks: bytes) -> bytes:
    """A PNG with these chunks after its header, by the specification (W3C, third edition)."""
    data = saved(Image.fromarray(PICTURE))
    made = b"".join(
        struct.pack(">I", len(body)) + kind.encode() + body + struct.pack(">I", zlib.crc32(kind.encode() + body))
        for kind, body in chunks.items()
    )
    return data[:33] + made + data[33:]


def avif_with(primaries: int, transfer: int) -> bytes:
    """An AVIF whose nclx colour box (ISO/IEC 23000-22, 14496-12) has these code points."""
    data = bytearray(saved(Image.fromarray(PICTURE), "AVIF", quality=100))
    at = data.index(b"colrnclx") + 8
    data[at : at + 4] = struct.pack(">HH", primaries, transfer)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png_with(cICP=bytes([9, 16, 0, 1])), "BT.2020, PQ (cICP)"),
        (png_with(cICP=bytes([12, 13, 0, 1])), "Display P3, sRGB (cICP)"),
        (png_with(gAMA=struct.pack(">I", 100_000)), "of gamma 1 (gAMA)"),
        (avif_with(9, 18), "BT.2020, HLG (nclx)"),
    ],
    ids=["PQ", "P3", "linear", "HLG"],
)
def test_colours_that_are_signalled_without_a_profile_are_said(data, words):
    for given in (lambda: read_image(data, "holiday"), lambda: as_tensor(Image.open(io.BytesIO(data)))):
        with pytest.warns(ImageWarning) as said:
            given()
        assert any(f"its colours are marked as {words} and were read as sRGB" in str(one.message) for one in said)


@pytest.mark.parametrize(
    "data",
    [
        png_with(cICP=bytes([1, 13, 0, 1])),
        png_with(gAMA=struct.pack(">I", 45455)),
        png_with(sRGB=b"\0", gAMA=struct.pack(">I", 100_000)),  # sRGB comes first
        avif_with(1, 13),
        avif_with(1, 1),
    ],
    ids=["cICP", "gAMA", "sRGB", "nclx", "nclx of BT.709"],
)
def test_srgb_that_is_signalled_needs_no_words(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(data)


def test_a_profile_comes_before_a_gamma():
    data = saved(Image.fromarray(PICTURE), icc_profile=profile(SRGB_TO_XYZ))
    body = b"gAMA" + struct.pack(">I", 100_000)
    data = data[:33] + struct.pack(">I", 4) + body + struct.pack(">I", zlib.crc32(body)) + data[33:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(data), PICTURE)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_what_others_have_pillow_accept_is_cut_short_here(kind, monkeypatch):
    """A library that has set the switch for its own files finds it as it was."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = saved(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    for given in (read_image, lambda cut: as_tensor(Image.open(io.BytesIO(cut)))):
        with pytest.raises(UserError, match="cut short or damaged"):
            given(data[: len(data) // 2])
        assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert read_image(data).shape == (64, 64, 3)
