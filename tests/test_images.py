import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aeic_lightning.errors import UserError
from aeic_lightning.files import SUFFIXES
from aeic_lightning.images import image_size, read_image
from aeic_lightning.pictures import FORMATS, without_metadata

RNG = np.random.default_rng(7)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def png(values: np.ndarray, colour_type: int, depth: int, chunks: bytes = b"") -> bytes:
    """A PNG written by hand from the specification, since Pillow cannot write 16-bit colour."""
    lines = values.astype(">u2" if depth == 16 else np.uint8)
    raw = b"".join(b"\0" + line.tobytes() for line in lines)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, colour_type, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunks + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return colour * (alpha / 255.0) + 255.0 * (1 - alpha / 255.0)


# EXIF 2.3, tag 274: where row 0 and column 0 of the stored array lie in the picture.
ORIENTATIONS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation(orientation, kind):
    exif = Image.Exif()
    exif[274] = orientation
    data = saved(Image.fromarray(RGB), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(read_image(data), ORIENTATIONS[orientation](RGB))


def test_exif_orientation_of_16_bit_grey():
    exif = Image.Exif()
    exif[274] = 6
    grey = RNG.integers(0, 65536, (6, 9), dtype=np.uint16)
    np.testing.assert_array_equal(read_image(saved(Image.fromarray(grey), exif=exif))[..., 0], np.rot90(grey >> 8, -1))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_formats(kind):
    image = read_image(saved(Image.fromarray(RGB), kind))
    assert (image.dtype, image.flags.c_contiguous, image.flags.writeable) == (np.uint8, True, True)
    np.testing.assert_array_equal(image, RGB)


def test_path_and_bytes_agree(tmp_path):
    (tmp_path / "a.png").write_bytes(saved(Image.fromarray(RGB)))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB)
    assert image_size(tmp_path / "a.png") == (6, 9)


def test_content_decides_the_format(tmp_path):
    (tmp_path / "a.jpg").write_bytes(saved(Image.fromarray(RGB)))
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), RGB)


def test_grey_becomes_three_equal_channels():
    grey = RGB[..., 0]
    np.testing.assert_array_equal(read_image(saved(Image.fromarray(grey))), np.stack([grey] * 3, -1))


def test_one_bit():
    bits = RGB[..., 0] > 128
    np.testing.assert_array_equal(read_image(saved(Image.fromarray(bits)))[..., 1], bits * 255)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_laid_over_white(kind):
    rgba = RNG.integers(0, 256, (6, 9, 4), dtype=np.uint8)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    image = read_image(saved(Image.fromarray(rgba), kind, **options))
    assert np.abs(image - on_white(rgba[..., :3], rgba[..., 3:])).max() <= 1


def test_opaque_alpha_changes_nothing():
    opaque = np.dstack([RGB, np.full((6, 9), 255, np.uint8)])
    np.testing.assert_array_equal(read_image(saved(Image.fromarray(opaque))), RGB)


def test_grey_with_alpha():
    la = RGB[..., :2]
    assert np.abs(read_image(png(la, 4, 8)) - on_white(la[..., :1], la[..., 1:])).max() <= 1


def test_palette_with_and_without_transparency():
    palette = RNG.integers(0, 256, (4, 3), dtype=np.uint8)
    index = RNG.integers(0, 4, (6, 9), dtype=np.uint8)
    plte = chunk(b"PLTE", palette.tobytes())
    np.testing.assert_array_equal(read_image(png(index, 3, 8, plte)), palette[index])
    alpha = np.array([0, 255, 128, 255], np.uint8)
    image = read_image(png(index, 3, 8, plte + chunk(b"tRNS", alpha.tobytes())))
    assert np.abs(image - on_white(palette[index], alpha[index][..., None])).max() <= 1


def test_transparent_colour_of_rgb_and_16_bit_grey():
    image = read_image(png(RGB, 2, 8, chunk(b"tRNS", RGB[2, 3].astype(">u2").tobytes())))
    expected = RGB.copy()
    expected[(RGB[2, 3] == RGB).all(-1)] = 255
    np.testing.assert_array_equal(image, expected)
    grey = np.arange(54).reshape(6, 9) * 1000
    image = read_image(png(grey, 0, 16, chunk(b"tRNS", struct.pack(">H", 5000))))
    np.testing.assert_array_equal(image[..., 0], np.where(grey == 5000, 255, grey >> 8))


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3)])
def test_16_bit_png(colour_type, channels):
    wide = RNG.integers(0, 65536, (6, 9, channels))
    wide[0, 0], wide[0, 1] = 0, 65535
    image = read_image(png(wide, colour_type, 16)).astype(int)
    assert np.abs(image - wide / 257).max() < 1
    assert (image[0, 0] == 0).all()
    assert (image[0, 1] == 255).all()


@pytest.mark.parametrize(("colour_type", "channels"), [(4, 2), (6, 4)])
def test_16_bit_png_with_alpha(colour_type, channels):
    wide = RNG.integers(0, 65536, (6, 9, channels))
    expected = on_white(wide[..., :-1] / 257, wide[..., -1:] / 257)
    assert np.abs(read_image(png(wide, colour_type, 16)) - expected).max() < 2


@pytest.mark.parametrize("colour_type", [0, 2])
def test_8_bit_image_widened_to_16_bits_comes_back_exactly(colour_type):
    narrow = RGB[..., : 1 if colour_type == 0 else 3]
    np.testing.assert_array_equal(
        read_image(png(narrow.astype(int) * 257, colour_type, 16)), np.broadcast_to(narrow, RGB.shape)
    )


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("shape", [(6, 9), (6, 9, 3)])
def test_16_bit_tiff(tmp_path, byteorder, shape):
    wide = RNG.integers(0, 65536, shape).astype(np.uint16)
    photometric = "rgb" if len(shape) == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", wide, byteorder=byteorder, photometric=photometric)
    image = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(image if len(shape) == 3 else image[..., 0], wide >> 8)


def test_32_bit_integers_that_hold_16_bits(tmp_path):
    wide = RNG.integers(0, 65536, (6, 9)).astype(np.int32)
    tifffile.imwrite(tmp_path / "a.tif", wide)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[..., 0], wide >> 8)


def test_floats(tmp_path):
    values = RNG.random((6, 9)).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", values)
    assert np.abs(read_image(tmp_path / "a.tif")[..., 0] / 255 - values).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(
    "values",
    [np.full((2, 2), 1.5, np.float32), np.full((2, 2), np.nan, np.float32), np.full((2, 2), 70000, np.int32)],
    ids=["float above 1", "nan", "int above 16 bits"],
)
def test_values_without_a_known_range_are_refused(tmp_path, values):
    tifffile.imwrite(tmp_path / "a.tif", values)
    with pytest.raises(UserError, match=r"a\.tif.*outside \[0, "):
        read_image(tmp_path / "a.tif")


def test_cmyk_jpeg():
    # Flat colours survive JPEG; the reference is the definition R = (1 - C)(1 - K), on 8 bits.
    for cmyk in [(0, 0, 0, 0), (255, 0, 0, 0), (0, 200, 100, 50), (0, 0, 0, 255)]:
        image = read_image(saved(Image.new("CMYK", (16, 16), cmyk), "JPEG", quality=100))
        c, m, y, k = (v / 255 for v in cmyk)
        assert np.abs(image - np.array([(1 - c) * (1 - k), (1 - m) * (1 - k), (1 - y) * (1 - k)]) * 255).max() <= 3


def test_ycbcr_jpeg():
    image = read_image(saved(Image.new("RGB", (16, 16), (200, 30, 90)), "JPEG", quality=100))
    assert np.abs(image.astype(int) - (200, 30, 90)).max() <= 2


def broken_files():
    photo = np.kron(RGB, np.ones((64, 64, 1), np.uint8))
    whole_png, whole_jpeg = saved(Image.fromarray(photo)), saved(Image.fromarray(photo), "JPEG")
    flipped = bytearray(whole_png)
    flipped[len(flipped) // 2] ^= 0xFF
    return {
        "zero bytes": (b"", "empty"),
        "text": (b"not an image at all\n" * 9, "not a known image"),
        "html": (b"<!doctype html><title>404</title>", "not a known image"),
        "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a known image"),
        "png cut": (whole_png[: len(whole_png) // 2], "cut short or damaged"),
        "jpeg cut": (whole_jpeg[: len(whole_jpeg) // 2], "cut short or damaged"),
        "png header only": (whole_png[:12], "damaged|not a known image"),
        "png bit flip": (bytes(flipped), "cut short or damaged"),
    }


@pytest.mark.parametrize("case", broken_files())
def test_broken_file_is_one_line_with_its_name(tmp_path, case):
    data, reason = broken_files()[case]
    (tmp_path / "broken.png").write_bytes(data)
    with pytest.raises(UserError, match=reason) as caught:
        read_image(tmp_path / "broken.png")
    assert "broken.png" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match=r"gone\.png.*No such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(UserError, match="directory"):
        read_image(tmp_path)


def jpeg_segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def tiff_with_tags(*tags: tuple[int, int, int, int]) -> bytes:
    """A grey TIFF of 8 x 8 pixels, written by hand, with more tags (tag, type, count, offset)."""
    grey = RGB[..., 0][:6, :8].tobytes()
    baseline = [(256, 3, 1, 8), (257, 3, 1, 6), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
                (277, 3, 1, 1), (278, 3, 1, 6), (279, 4, 1, 48)]  # fmt: skip
    entries = sorted([*baseline, *tags])
    page = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(grey)) + grey + page + struct.pack("<I", 0)


def whole_pixels_with_broken_metadata():
    """(file, its pixels), the metadata broken in the ways in which each format can have it."""
    good_png = png(RGB, 2, 8)
    bad_crc = chunk(b"tEXt", b"Comment\0hello")[:-4] + b"\0\0\0\0"
    large_text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b" " * 3_000_000))
    turned = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\1\0\0\0\6" + b"\0" * 7  # orientation 6
    flat = np.full((16, 16, 3), 90, np.uint8)
    jpeg = saved(Image.fromarray(flat), "JPEG", quality=100)
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 30
    webp = saved(Image.fromarray(RGB), "WEBP", lossless=True, exif=b"Exif\0\0garbage that is no TIFF")
    grey = np.stack([RGB[..., 0][:6, :8]] * 3, -1)
    return {
        "png, EXIF": (png(RGB, 2, 8, chunk(b"eXIf", b"garbage")), RGB),
        "png, EXIF cut": (png(RGB, 2, 8, chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff\x12")), RGB),
        "png, EXIF after the pixels": (good_png[:-12] + chunk(b"eXIf", b"garbage") + good_png[-12:], RGB),
        "png, text and an orientation": (png(RGB, 2, 8, bad_crc + chunk(b"eXIf", turned)), np.rot90(RGB, -1)),
        "png, checksum of a text": (png(RGB, 2, 8, bad_crc), RGB),
        "png, text too large": (png(RGB, 2, 8, large_text), RGB),
        "png, colour profile": (png(RGB, 2, 8, chunk(b"iCCP", b"")), RGB),
        "png, short pHYs": (png(RGB, 2, 8, chunk(b"pHYs", b"\0")), RGB),
        "jpeg, EXIF": (jpeg[:2] + jpeg_segment(0xE1, exif) + jpeg[2:], flat),
        "jpeg, no EXIF in it": (jpeg[:2] + jpeg_segment(0xE1, b"Exif\0\0garbage") + jpeg[2:], flat),
        "jpeg, colour profile": (jpeg[:2] + jpeg_segment(0xE2, b"ICC_PROFILE\0") + jpeg[2:], flat),
        "jpeg, MPF": (jpeg[:2] + jpeg_segment(0xE2, b"MPF\0garbage") + jpeg[2:], flat),
        "webp, EXIF": (webp, RGB),
        "webp, EXIF cut": (webp[:-9], RGB),
        "tiff, EXIF": (tiff_with_tags((34665, 4, 1, 99_999)), grey),
        "tiff, EXIF at itself and an orientation": (
            tiff_with_tags((270, 6, 50, 99_999), (34665, 5, 0, 1), (274, 3, 1, 6)), np.rot90(grey, -1)
        ),
        "tiff, XMP of numbers": (tiff_with_tags((700, 4, 2, 0)), grey),
        "tiff, GPS": (tiff_with_tags((34853, 2, 7, 99_999)), grey),
        "tiff, XMP and a profile": (tiff_with_tags((700, 1, 500, 99_999), (34675, 7, 500, 99_999)), grey),
        "tiff, resolution by 0": (tiff_with_tags((282, 5, 1, 20), (283, 5, 1, 99_999), (296, 2, 1, 0)), grey),
    }  # fmt: skip


@pytest.mark.parametrize("case", whole_pixels_with_broken_metadata())
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_broken_metadata_never_decides_over_pixels(case):
    data, pixels = whole_pixels_with_broken_metadata()[case]
    tolerance = 2 if case.startswith("jpeg") else 0
    image = read_image(data)
    assert image.shape == pixels.shape
    assert np.abs(image.astype(int) - pixels).max() <= tolerance
    assert sorted(image_size(data)) == sorted(pixels.shape[:2])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_file_without_metadata_keeps_its_pixels(kind):
    """Also with an orientation, for which the whole file is read by Pillow alone."""
    exif = Image.Exif()
    exif[274] = 6
    exif[271] = "a camera"
    photo = np.kron(RGB, np.ones((8, 8, 1), np.uint8))
    data = saved(
        Image.fromarray(photo), kind, exif=exif, dpi=(72, 72), **({"lossless": True} if kind == "WEBP" else {})
    )
    bare, orientation = without_metadata(data)
    assert b"a camera" not in bare or kind == "TIFF"
    assert orientation == (1 if kind == "TIFF" else 6)
    expected = read_image(data)
    np.testing.assert_array_equal(read_image(bare), expected if kind == "TIFF" else np.rot90(expected))


def test_a_damaged_palette_or_transparency_is_not_taken_for_metadata():
    index = RNG.integers(0, 4, (6, 9), dtype=np.uint8)
    palette, alpha = chunk(b"PLTE", bytes(range(12))), chunk(b"tRNS", b"\0\xff")
    text = chunk(b"tEXt", b"Comment\0hello")[:-4] + b"\0\0\0\0"
    for parts in (palette.replace(b"PLTE", b"pLTE"), palette + alpha.replace(b"tRNS", b"tRnS")):
        with pytest.raises(UserError, match=r"damaged|not a known image"):
            read_image(png(index, 3, 8, text + parts))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_cut_file_stays_cut_without_its_metadata(kind):
    data = saved(Image.fromarray(np.kron(RGB, np.ones((32, 32, 1), np.uint8))), kind)
    bare, _ = without_metadata(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"damaged|not a known image"):
        read_image(bare)


def test_every_suffix_that_pillow_knows_for_these_formats_counts():
    Image.init()
    assert set(SUFFIXES) == {suffix for suffix, kind in Image.EXTENSION.items() if kind in FORMATS}


@given(st.binary(max_size=200), st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM"]), st.integers(0, 60))
def test_damage_gives_an_image_or_a_user_error(noise, kind, position):
    data = saved(Image.fromarray(RGB), kind)
    data = data[:position] + noise + data[position + len(noise) :]
    try:
        image = read_image(data, max_pixels=10_000)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017 (either outcome is right)
    else:
        assert image.ndim == 3


def test_pixel_limit():
    data = saved(Image.new("L", (100, 50)))
    assert read_image(data, max_pixels=5000).shape == (50, 100, 3)
    with pytest.raises(UserError, match=r"photo: 100 x 50 is more than 4999 pixels.*max_pixels"):
        read_image(data, "photo", max_pixels=4999)
    with pytest.raises(UserError, match="max_pixels"):
        image_size(data, max_pixels=4999)


@pytest.mark.parametrize("side", [9000, 40000])
def test_decompression_bomb_is_refused_by_its_header(side):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(UserError, match="refused bomb"):
        read_image(bomb, "bomb")


def test_8192_square_is_within_the_limit():
    header = struct.pack(">IIBBBBB", 8192, 8192, 8, 2, 0, 0, 0)
    assert image_size(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")) == (8192, 8192)
