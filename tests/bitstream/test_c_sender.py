"""The sender in C against `compress`: another language, another compiler, integers alone."""

import base64
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aeic_lightning.bitstream.c_sender import export_c
from aeic_lightning.bitstream.stream import Bitstream
from aeic_lightning.cli import main
from aeic_lightning.errors import UserError
from aeic_lightning.images import from_uint8, read_image
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.integer import POSITIVE, SIGNED, IntegerConv, integer_gain, log_gains
from aeic_lightning.models.random_model import random_model, save
from benchmarks import c_crops
from tests.bitstream.small import LEVELS

PARTS = "aeic_lightning.models."
SANITIZE = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -Werror"


def micro(rate_levels: list[float] | None = LEVELS, integer: bool = True, **sizes) -> CodecConfig:
    """A sender of few weights, its receiver smaller still."""
    widths = {"widths": [16, 24, 24, 32], "hidden": [16, 0, 32, 24], "kernels": [3, 3, 5, 3], "channels": 32}
    return CodecConfig(
        encoder={"class_path": f"{PARTS}encoders.micro.MicroEncoder", "init_args": widths | {"integer": integer}},
        h_a={"class_path": f"{PARTS}codec.micro.MicroHyperAnalysis", "init_args": {"width": 16, "integer": integer}},
        h_s={"class_path": f"{PARTS}codec.micro.MicroHyperSynthesis", "init_args": {"widths": [16, 24]}},
        context={"class_path": f"{PARTS}codec.context.NoContext"},
        synthesis_widths=[16, 16, 16], synthesis_depths=[1, 1, 1], l_T_channels=8, l_res_channels=8,
        rate_levels=rate_levels, **{"by_rows": True} | sizes,
    )  # fmt: skip


@torch.no_grad()
def wide_open(config: CodecConfig) -> AEIC:
    """Random weights, and latents so large that many lie outside of their tables."""
    model = random_model(config)
    model.codec.g_a[-1].weight.mul_(12)
    model.codec.h_a[-1].weight.mul_(6)
    return model


@pytest.fixture(scope="module")
def model() -> AEIC:
    return wide_open(micro())


@pytest.fixture(scope="module")
def bitstream(model) -> Bitstream:
    return Bitstream(model)


def build(model: AEIC, folder: Path, flags: str = SANITIZE) -> Path:
    folder.mkdir()
    export_c(Bitstream(model), folder)
    subprocess.run(["make", "-C", folder, f"CFLAGS={flags}"], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    return build(model, tmp_path_factory.mktemp("c") / "sender")


def ppm(pixels: np.ndarray) -> bytes:
    return b"P6\n%d %d\n255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes()


def said(folder: Path, *order: object) -> str:
    """What `send` prints of photo.ppm, once photo.aeic is written."""
    done = subprocess.run(
        [folder / "send", folder / "photo.ppm", folder / "photo.aeic", *map(str, order)], capture_output=True, text=True
    )
    assert not done.returncode, done.stderr
    return done.stdout


def send(folder: Path, pixels: np.ndarray, *order: object) -> bytes:
    (folder / "photo.ppm").write_bytes(ppm(pixels))
    said(folder, *order)
    return (folder / "photo.aeic").read_bytes()


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return from_uint8(torch.from_numpy(pixels).permute(2, 0, 1)[None])


def pictures(count: int, largest: int):
    """Photographs cut and turned, smooth areas and noise, of sizes even in log."""
    chance, noise = random.Random(1), np.random.default_rng(1)
    from skimage.data import astronaut, chelsea

    photos = [astronaut(), chelsea()]
    for number in range(count):
        height, width = (round(largest ** chance.random()) for _ in range(2))
        photo = photos[number % 2]
        top, left = chance.randrange(photo.shape[0] - height), chance.randrange(photo.shape[1] - width)
        cut = photo[top : top + height, left : left + width]
        if number % 5 == 3:
            cut = noise.integers(0, 256, cut.shape).astype(np.uint8)
        if number % 5 == 4:
            cut = np.full_like(cut, chance.choice([0, 255, 127]))
        yield np.ascontiguousarray(cut)


def test_the_streams_are_those_of_python_and_decode(folder, bitstream):
    escaped = 0
    for number, pixels in enumerate(pictures(25, 150)):
        dial = (0, 255, 51 * (number % 6))[number % 3]
        encoded = bitstream.encode_fully(tensor(pixels), dial * 2 / 255)
        assert send(folder, pixels, "--position", dial) == encoded.data
        bitstream.decode(encoded.data)  # its latents are checked there
        escaped += encoded.escaped
    assert escaped > 100


def test_memory_does_not_grow_with_the_height(folder, bitstream):
    """Through many bands of rows, the last of them not whole; the width decides alone on the memory."""
    from skimage.data import astronaut

    used = set()
    for height in (260, 512, 900):
        pixels = np.tile(astronaut()[:, 100:170], (2, 1, 1))[:height]
        encoded = bitstream.encode_fully(tensor(pixels), 1.0)
        assert send(folder, pixels, "--level", 1) == encoded.data
        bitstream.decode(encoded.data)
        used.add(re.search(r"(\d+) bytes of working memory", said(folder, "--level", 1))[1])
    assert len(used) == 1


def test_rates_to_order_are_those_of_python(folder, bitstream):
    (pixels,) = pictures(1, 150)
    x = tensor(pixels)
    smallest, largest = (len(bitstream.encode(x, level)) for level in (0.0, 2.0))
    assert send(folder, pixels) == bitstream.encode(x)
    assert send(folder, pixels, "--level", 1.3) == bitstream.encode(x, 1.3)
    for most in (smallest, smallest + 1, (smallest + largest) // 2, largest, largest + 1000):
        assert send(folder, pixels, "--bytes", most) == bitstream.encode_at(x, max_bytes=most).data
    bpp = 8 * (smallest + largest) / 2 / pixels[..., 0].size
    assert send(folder, pixels, "--bpp", bpp) == bitstream.encode_at(x, bpp=bpp).data
    with pytest.raises(AssertionError, match="smallest stream of this model is larger"):
        send(folder, pixels, "--bytes", smallest - 1)


@pytest.mark.parametrize(
    "sizes", [{"skip_threshold": None}, {"z_only": True}, {}], ids=["all coded", "z alone", "one rate"]
)
def test_other_kinds_of_models(sizes, tmp_path):
    model = random_model(micro(None, **sizes))
    folder, bitstream = build(model, tmp_path / "sender"), Bitstream(model)
    for pixels in pictures(3, 100):
        assert send(folder, pixels) == bitstream.encode(tensor(pixels))


def test_make_check_compares_with_the_golden_streams(folder):
    assert len(list((folder / "golden").glob("*.aeic"))) == 9
    subprocess.run(["make", "-C", folder, "check"], check=True, capture_output=True)
    golden = folder / "golden" / "waves.128.aeic"
    data = golden.read_bytes()
    golden.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert subprocess.run(["make", "-C", folder, "check"], capture_output=True).returncode
    golden.write_bytes(data)


def test_no_floating_point_and_no_library(folder, tmp_path):
    """Compiled for a machine whose floating point is in a library, the object asks for none of it."""
    subprocess.run(
        [os.environ.get("CC", "cc"), "-std=c99", "-pedantic-errors", "-Wall", "-Wextra", "-Werror", "-O2", "-mno-sse",
         "-msoft-float", "-mno-80387", "-c", folder / "aeic_sender.c", "-o", tmp_path / "sender.o"], check=True,
    )  # fmt: skip
    symbols = subprocess.run(["nm", "-u", tmp_path / "sender.o"], capture_output=True, text=True, check=True).stdout
    wanted = {line.split()[-1] for line in symbols.splitlines()} - {"_GLOBAL_OFFSET_TABLE_"}
    assert wanted <= {"memcpy", "memset", "memmove", "__stack_chk_fail"}


def test_damaged_pictures_are_refused_without_a_fault(folder, tmp_path):
    """Mutations of a PPM under AddressSanitizer and UndefinedBehaviorSanitizer: a stream or one line of error."""
    (pixels,) = pictures(1, 40)
    whole, chance = ppm(pixels[:9, :7]), random.Random(0)
    photo, target = tmp_path / "photo.ppm", tmp_path / "photo.aeic"
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 1, 3])):
            at = chance.randrange(14 if chance.random() < 0.8 else len(data))
            data[at : at + chance.choice([0, 1, 1, 2])] = chance.choice([b"", b"9", b"-", b"#", b"\n", b"\0", b"65536"])
        photo.write_bytes(data[: chance.choice([len(data), chance.randrange(len(data) + 1)])])
        done = subprocess.run([folder / "send", photo, target], capture_output=True, text=True)
        assert done.returncode in (0, 2), done.stderr
        assert done.stderr.count("\n") == (done.returncode == 2), done.stderr
        refused += done.returncode == 2
    assert 50 < refused < 150


ZIG = f"{sys.executable} -m ziglang cc -target"
IN_PAGE = """([code, width, height, pixels, position, most]) => {
    const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0))
    const {encode, aeic_memory, memory, __heap_base} =
        new WebAssembly.Instance(new WebAssembly.Module(bytes(code))).exports
    const after = at => (at + 15) & ~15, need = aeic_memory(width, height)
    const start = after(__heap_base.value), work = after(start + 3 * width * height), out = work + need
    memory.grow(Math.ceil((out + most + 32) / 65536))
    new Uint8Array(memory.buffer).set(bytes(pixels), start)
    const count = encode(start, width, height, position, work, need, out, most)
    return btoa(String.fromCharCode(...new Uint8Array(memory.buffer, out, Math.max(count, 0))))
}"""


def test_webassembly_in_chromium(folder, bitstream, chromium):
    subprocess.run(["make", "-C", folder, "aeic_sender.wasm", f"WASM_CC={ZIG} wasm32-freestanding"], check=True)
    code = base64.b64encode((folder / "aeic_sender.wasm").read_bytes()).decode()
    page = chromium.new_page()
    for number, pixels in enumerate(pictures(8, 150)):
        height, width, _ = pixels.shape
        dial = 36 * number
        given = [code, width, height, base64.b64encode(pixels.tobytes()).decode(), dial, 100000]
        expected = bitstream.encode(tensor(pixels), dial * 2 / 255)
        assert base64.b64decode(page.evaluate(IN_PAGE, given)) == expected
    # The rate to order in the memory of a few rows: the photograph is read once for each position that is tried.
    given[4:] = [-1, len(expected)]
    within = bitstream.encode_at(tensor(pixels), max_bytes=len(expected))
    assert base64.b64decode(page.evaluate(IN_PAGE, given)) == within.data
    page.close()


def test_a_microcontroller(folder, bitstream):
    """A Cortex-M7 without an operating system, in QEMU; the linker holds it to 512 KB of RAM."""
    board = ["make", "-s", "-C", folder, "board", "CPU=cortex_m7", f"ARM_CC={ZIG} thumb-freestanding-eabi"]
    for pixels in pictures(3, 150):
        (folder / "frame.ppm").write_bytes(ppm(pixels))
        (folder / "frame.aeic").unlink(missing_ok=True)
        report = subprocess.run(board, check=True, capture_output=True, text=True).stderr
        assert (folder / "frame.aeic").read_bytes() == bitstream.encode(tensor(pixels))
        used = {name: int(count) for name, count in re.findall(r"^([a-z ]+) (\d+)$", report, re.MULTILINE)}
        assert 500 < used["stack"] < 6000
        assert used["working memory"] < 200 * 1024


def test_the_command_line(model, bitstream, tmp_path, capsys):
    save(model, tmp_path / "micro.ckpt")
    assert main(["export", "--checkpoint", str(tmp_path / "micro.ckpt"), "--c", "-o", str(tmp_path / "c")]) == 0
    subprocess.run(["make", "-C", tmp_path / "c", "check"], check=True, capture_output=True)
    assert (tmp_path / "c" / "golden" / "pixel.0.aeic").read_bytes() == bitstream.encode(
        tensor(read_image(tmp_path / "c" / "golden" / "pixel.ppm")), 0.0
    )


def test_jpeg(folder, bitstream, tmp_path):
    """Decoders of JPEG differ in single levels, but not on grey; damaged files are refused."""
    command = ["make", "-B", "-C", folder, f"CFLAGS={SANITIZE}", "JPEG=1", "PROGRAM=send-jpeg"]
    subprocess.run(command, check=True, capture_output=True)
    photo, target = tmp_path / "photo.jpg", tmp_path / "photo.aeic"
    grey = np.full((50, 70, 3), 131, np.uint8)
    Image.fromarray(grey).save(photo)
    subprocess.run([folder / "send-jpeg", photo, target], check=True, capture_output=True)
    assert target.read_bytes() == bitstream.encode(tensor(grey))
    (pixels,) = pictures(1, 60)
    Image.fromarray(pixels).save(photo)
    whole, chance = photo.read_bytes(), random.Random(0)
    for _ in range(60):
        data = bytearray(whole[: chance.choice([len(whole), chance.randrange(len(whole))])])
        for _ in range(3):
            data[chance.randrange(len(data))] = chance.randrange(256)
        photo.write_bytes(data)
        done = subprocess.run([folder / "send-jpeg", photo, target], capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) in ((0, 0), (2, 1)), done.stderr


def test_what_has_no_form_in_c_is_refused(model, model_of_levels, tmp_path):
    for other in (model_of_levels, random_model(micro(integer=False))):
        with pytest.raises(UserError, match="which has no form in C"):
            export_c(Bitstream(other), tmp_path)
    grid = replace(micro(), context={"class_path": f"{PARTS}codec.context.CheckerboardContext",
                                     "init_args": {"width": 16, "depth": 1}})  # fmt: skip
    with pytest.raises(UserError, match="by_rows: CheckerboardContext goes over the whole image in 2 steps"):
        random_model(grid)
    with pytest.raises(UserError, match="CheckerboardContext; a sender in C takes NoContext"):
        export_c(Bitstream(random_model(replace(grid, by_rows=False))), tmp_path)
    with pytest.raises(UserError, match="by_rows is false"):
        export_c(Bitstream(random_model(micro(by_rows=False))), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_comparison_over_many_crops_counts_what_differs(model, tmp_path, monkeypatch, capsys):
    """`benchmarks.c_crops`, without emulators: none differs, and with another model's C some do."""
    save(model, tmp_path / "micro.ckpt")
    (tmp_path / "photos").mkdir()
    for number, pixels in enumerate(pictures(3, 200)):
        Image.fromarray(np.pad(pixels, ((0, 100), (0, 100), (0, 0)), "wrap")).save(tmp_path / f"photos/{number}.png")
    monkeypatch.setattr(c_crops, "SENDERS", {"x86-64, cc": ([], "cc")})
    monkeypatch.setattr(c_crops, "PHOTOS", 3)
    words = ["c_crops", str(tmp_path / "micro.ckpt"), f"--images={tmp_path / 'photos'}", "--count=20"]
    monkeypatch.setattr("sys.argv", words)
    assert c_crops.main() == 0
    assert "streams that differ: {'x86-64, cc': 0, 'WebAssembly, zig, Node': 0}" in capsys.readouterr().out
    monkeypatch.setattr(c_crops, "export_c", lambda _, folder: export_c(Bitstream(random_model(micro())), folder))
    assert c_crops.main() == 1


# ---------------------------------------------------------------------- training


def test_training_computes_what_evaluation_does_and_learns():
    torch.manual_seed(0)
    model = random_model(micro())
    x = tensor(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))
    with torch.no_grad():
        expected = model.codec.g_a(x)
    y = model.codec.g_a(x)
    assert torch.equal(y, expected)
    y.square().mean().backward()
    for name, parameter in model.codec.g_a.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_a_convolution_is_its_integers():
    """Against products of int64, over weights of very different sizes."""
    torch.manual_seed(0)
    conv = IntegerConv(40, 24, POSITIVE, SIGNED)
    with torch.no_grad():
        conv.weight.mul_(torch.logspace(-4, 3, 24)[:, None, None, None])
        conv.bias.normal_(std=3)
    x = torch.randint(0, 256, (2, 40, 5, 3))
    weight, bias, shift = (part.long() for part in conv.integers())
    assert weight.abs().amax((1, 2, 3)).max() == 127
    sums = torch.einsum("bkhw,ok->bohw", x, weight.flatten(1)) + bias.view(-1, 1, 1)
    shift = shift.view(-1, 1, 1)
    expected = (sums + (1 << shift >> 1) >> shift).clamp(-128, 127)
    with torch.no_grad():
        assert torch.equal(conv(x / 32) * 16, expected.float())
    assert torch.equal(conv(x / 32) * 16, expected.float())


def test_integer_gains_are_near_those_of_floating_point():
    torch.manual_seed(0)
    log_gain, y = torch.randn(3, 8) * 1.5, torch.randint(-2000, 2000, (4, 8, 6, 6)) / 64
    level = torch.tensor([0, 89, 128, 255]) * 2 / 255
    at = level.floor().clamp(max=1).long()
    share = (level - at)[:, None]
    gain = (log_gain[at] * (1 - share) + log_gain[at + 1] * share).exp()[..., None, None]
    scaled = integer_gain(y, log_gain, level)
    assert torch.equal(scaled * 256, (scaled * 256).round())
    # One and a half steps of the logarithm, and half a step of y.
    assert ((scaled - y * gain).abs() <= 0.0041 * (y * gain).abs() + 1 / 512).all()
    assert log_gains(log_gain * 100).abs().max() == 8 * 256
