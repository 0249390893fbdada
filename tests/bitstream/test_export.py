"""The exported halves in onnxruntime, against the PyTorch ones.

Of one model, since an export takes long: of three rates, and with tiles. A second one, with neither and with an encoder
that the package has never seen, takes the two graphs of the exact arithmetic from the first, whose weights it has.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from skimage.data import chelsea
from torchvision.transforms.functional import pil_to_tensor

from aeic_lightning.bitstream import wire
from aeic_lightning.bitstream.exact import exact_mode
from aeic_lightning.bitstream.export import (
    OPSET,
    ContextStep,
    _export,
    check_golden,
)
from aeic_lightning.bitstream.receive import Receiver
from aeic_lightning.bitstream.send import Sender
from aeic_lightning.bitstream.stream import Bitstream, dial_level, dial_position, reconstruct
from aeic_lightning.cli import main
from aeic_lightning.cli.commands.decompress import NOTICE
from aeic_lightning.errors import UserError
from aeic_lightning.images import from_uint8, to_uint8
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec.context import QUADTREE, grid_mask
from aeic_lightning.models.decoder import RestorationConfig, UNetConfig, VAEConfig
from aeic_lightning.models.random_model import random_model, save


@pytest.fixture(scope="module")
def model(model_of_levels) -> AEIC:
    return model_of_levels


@pytest.fixture(scope="module")
def bitstream(levelled) -> Bitstream:
    return levelled


@pytest.fixture(scope="module")
def folder(exported):
    return exported


def hwc(pixels: torch.Tensor) -> np.ndarray:
    """uint8 (1, 3, H, W) or (3, H, W) as (H, W, 3)."""
    return pixels.reshape(pixels.shape[-3:]).permute(1, 2, 0).numpy()


def assert_received(receiver, data, expected):
    found = receiver.picture(receiver.decode(data)).astype(int)
    assert np.abs(found - hwc(expected)).max() <= 1


def test_sender_gives_the_same_bytes_and_receiver_the_same_picture(model, bitstream, folder, picture):
    sender, receiver = Sender(folder / "send"), Receiver(folder / "receive")
    middle = dial_position(None, bitstream.levels)
    for seed, size in enumerate([(1, 1), (64, 64), (65, 200), (130, 60)]):
        pixels = to_uint8(picture(*size, seed))
        data = bitstream.encode(from_uint8(pixels))
        assert sender.encode(hwc(pixels), middle) == data
        decoded = bitstream.decode(data)
        for ours, theirs in zip(decoded.integers(), wire.integers_of(*receiver.decode(data)[2:4]), strict=True):
            assert np.array_equal(ours, theirs)
        assert_received(receiver, data, reconstruct(model, decoded))


def test_exported_halves_take_the_level(model, bitstream, folder, picture):
    sender, receiver, pixels = Sender(folder / "send"), Receiver(folder / "receive"), to_uint8(picture(70, 90))
    for dial in (0, 90, 255):
        data = bitstream.encode(from_uint8(pixels), dial_level(dial, bitstream.levels))
        assert sender.encode(hwc(pixels), dial) == data
        assert_received(receiver, data, reconstruct(model, bitstream.decode(data)))
    best = bitstream.encode_at(from_uint8(pixels), max_bytes=len(data) - 1).data
    assert sender.within(hwc(pixels), len(data) - 1) == best


def without(*modules: str) -> list[str]:
    """A command that runs the Python file named next, where none of these modules can be imported."""
    hide = f"import runpy, sys; sys.modules |= dict.fromkeys({modules!r}); sys.argv = sys.argv[1:]; "
    return [sys.executable, "-c", f"{hide}runpy.run_path(sys.argv[0], run_name='__main__')"]


def test_send_py_writes_the_files_of_compress_without_torch(bitstream, folder, picture, tmp_path):
    """In a process that can import neither PyTorch nor this package."""
    expected = {}
    for seed, (height, width) in enumerate([(1, 1), (65, 200)]):
        pixels = to_uint8(picture(height, width, seed))
        Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).save(tmp_path / f"{seed}.png")
        expected[f"{seed}.aeic"] = bitstream.encode(from_uint8(pixels))
    command = without("torch", "aeic_lightning")
    words = [folder / "send" / "send.py", "0.png", "1.png", "-o", "sent", "--check", folder / "golden"]
    done = subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "sent").iterdir()} == expected
    cases = json.loads((folder / "golden/golden.json").read_text())["cases"]
    assert done.stdout.count("reproduced") == len(cases)

    exif = Image.Exif()
    exif[274] = 6
    Image.open(tmp_path / "1.png").save(tmp_path / "turned.png", exif=exif)
    turned = torch.from_numpy(np.rot90(np.asarray(Image.open(tmp_path / "1.png")), -1).copy())
    (tmp_path / "notes.png").write_text("no image")
    done = subprocess.run([*command, words[0], "turned.png"], cwd=tmp_path, capture_output=True)
    assert (tmp_path / "turned.aeic").read_bytes() == bitstream.encode(from_uint8(turned.permute(2, 0, 1)[None]))
    done = subprocess.run([*command, words[0], "notes.png", "0.png", "--bytes", "3"], cwd=tmp_path, capture_output=True)
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 2
    assert lines[0].startswith("error: notes.png: cannot decode it: its content is not a known image")
    assert lines[1].startswith("error: 0.png: 3 bytes are too few")


def test_receive_py_draws_the_pictures_of_decompress_without_torch(model, bitstream, folder, picture, tmp_path):
    """In a process that can import neither PyTorch, this package nor a library of images."""
    data = bitstream.encode(picture(65, 200))
    (tmp_path / "a.aeic").write_bytes(data)
    (tmp_path / "damaged.aeic").write_bytes(data[:-1])
    (tmp_path / "long.aeic").write_bytes(data + b"1")
    words = [folder / "receive" / "receive.py", "damaged.aeic", "a.aeic", "gone.aeic", "long.aeic", "-o", "out"]
    command = [*without("torch", "aeic_lightning", "PIL"), *words, "--check", folder / "golden"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout.count("reproduced") == len(json.loads((folder / "golden/golden.json").read_text())["cases"])
    lines = done.stderr.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == ["damaged.aeic", "gone.aeic", "long.aeic"]
    assert all("check value of the file is wrong" in lines[i] for i in (0, 2))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    with Image.open(tmp_path / "out" / "a.png") as image:
        found, comment = np.asarray(image.convert("RGB")).astype(int), image.text["Comment"]
    assert comment == NOTICE
    assert np.abs(found - hwc(reconstruct(model, bitstream.decode(data)))).max() <= 1


@pytest.mark.parametrize("optimised", [True, False])
def test_graphs_give_every_value_to_the_last_bit(bitstream, folder, optimised):
    """Scales too, whose last bits seldom decide on a symbol: a runtime's approximate root or reciprocal shows here."""
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    h_s, context = (
        onnxruntime.InferenceSession(folder / "send" / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
        for name in ("hyper_synthesis", "context")
    )
    generator = torch.Generator().manual_seed(0)
    for size in ((1, 1), (3, 5), (6, 8), (9, 16)):
        z_hat = torch.randint(-4, 5, (1, bitstream.shared.medians.numel(), *size), generator=generator).float()
        with exact_mode():
            phi = bitstream.hyper_synthesis(z_hat).contiguous()
            assert np.array_equal(h_s.run(None, {"z_hat": z_hat.numpy()})[0], phi.numpy())
            for step in range(4):
                coded = grid_mask(QUADTREE[step], *phi.shape[1:])
                theirs = context.run(None, {"base": phi.numpy(), "step": np.array([step])})
                for ours, value in zip(bitstream.context.params(phi, step), theirs, strict=True):
                    assert torch.equal(ours[coded], torch.from_numpy(value)[coded])


def test_golden_vectors_hold_escapes_and_skips(folder):
    cases = {case["name"]: case for case in json.loads((folder / "golden/golden.json").read_text())["cases"]}
    assert cases["escapes"]["escaped"] > 10
    assert all(case["skipped"] > 0 and case["coded"] > 0 for case in cases.values())


def test_changed_golden_vectors_are_noticed(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "copy")
    wanted = copied / "golden/smooth.y.i32"
    integers = np.frombuffer(wanted.read_bytes(), "<i4").copy()
    integers[5] += 1
    wanted.write_bytes(integers.tobytes())
    with pytest.raises(UserError, match="golden vector smooth"):
        check_golden(copied)


def test_a_changed_picture_is_noticed(folder, tmp_path):
    """Of one tile and of several: both are in the golden vectors of a model that tiles."""
    for name, side in (("smooth", 97), ("tiles", 8 * 48)):
        copied = shutil.copytree(folder, tmp_path / name)
        wanted = copied / f"golden/{name}.picture.npy"
        picture = np.load(wanted)
        assert picture.shape[:2] == (3, side)
        picture[0, -1, -1] ^= 8
        np.save(wanted, picture)
        with pytest.raises(UserError, match=f"picture {name}"):
            check_golden(copied)


def test_halves_cannot_be_mixed(model, folder, tmp_path, picture):
    copied = shutil.copytree(folder / "receive", tmp_path / "receive")
    with pytest.raises(UserError, match="the send half"):
        Sender(copied)
    (copied / "tables.json").write_text((copied / "tables.json").read_text().replace("0.08", "0.09"))
    with pytest.raises(UserError, match="not the file of its manifest"):
        Receiver(copied)
    foreign = Bitstream(random_model(model.codec.config, seed=1)).encode(picture(64, 64))
    with pytest.raises(UserError, match="another checkpoint"):
        Receiver(folder / "receive").decode(foreign)


def test_graphs_are_valid_and_of_the_stated_opset(folder):
    for path in folder.glob("*/*.onnx"):
        onnx.checker.check_model(path)
        opsets = {entry.domain: entry.version for entry in onnx.load(path).opset_import}
        assert opsets[""] == OPSET
        assert json.loads((path.parent / "manifest.json").read_text())["opset"] == OPSET


def test_manifest_of_a_missing_half(tmp_path):
    with pytest.raises(UserError, match="not an exported half"):
        Sender(tmp_path)


def test_sizes_are_free(folder):
    receiver = Receiver(folder / "receive")
    for rows, columns in [(2, 2), (6, 14)]:
        base = np.zeros((1, 32, rows, columns), np.float32)
        mean, scale = receiver.context(base, 2)
        assert mean.shape == scale.shape == base.shape


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (1024, 1024), (96, 1000)])
def test_the_receiver_tiles_as_the_decoder_does(tiled, bitstream, folder, picture, size):
    """Equal pictures, and no pass of the two large networks sees more than a tile."""
    data = bitstream.encode(picture(*size))
    receiver = Receiver(folder / "receive")
    seen = {"denoiser": [], "vae": []}
    run = receiver.run

    def watched(name, inputs):
        if name in seen:
            seen[name].append(next(iter(inputs.values()))[0, 0].size)
        return run(name, inputs)

    receiver.run = watched
    assert_received(receiver, data, reconstruct(tiled, bitstream.decode(data)))
    whole = size[0] * size[1] // 64
    assert max(seen["denoiser"]) <= 32**2
    assert max(seen["vae"]) <= 40**2
    assert (len(seen["denoiser"]) > 1) == (whole > 32**2)


@pytest.fixture
def plain(model) -> AEIC:
    """One rate, no tiles, and an encoder from elsewhere before the same exact arithmetic; a decoder of few layers that
    ends with a restoration network."""
    encoder = {"class_path": "tests.models.plain_encoder.PlainEncoder", "init_args": {"width": 8}}
    config = replace(model.codec.config, encoder=encoder, widths=None, depths=None, rate_levels=None)
    unet = UNetConfig([8], [1], layers=1, groups=4)
    vae = VAEConfig([8, 16], layers=0, groups=4, attention=False, patch=4, restoration=RestorationConfig(8, 2))
    decoder = replace(model.decoder.config, unet=unet, vae=vae, tiling=None)
    plain = AEIC(config, decoder)
    theirs = model.codec.state_dict()
    shared = ("h_a.", "h_s.", "context.", "prior.", "g_s.")
    plain.codec.load_state_dict({k: v for k, v in theirs.items() if k.startswith(shared)}, strict=False)
    return plain.eval()


def test_an_encoder_from_elsewhere_is_exported_by_the_command(plain, model, folder, tmp_path, monkeypatch):
    """What its sender writes is decoded by the checkpoint, which checks every latent, and by its receiver."""
    exact = {type(Bitstream(model).hyper_synthesis): "hyper_synthesis.onnx", ContextStep: "context.onnx"}
    written = []

    def once(module, example, path, *arguments):
        written.append(path.name)
        if name := exact.get(type(module)):
            shutil.copy(folder / "send" / name, path)  # `check_golden` sees it if they were another's
        else:
            _export(module, example, path, *arguments)

    monkeypatch.setattr("aeic_lightning.bitstream.export._export", once)
    save(plain, tmp_path / "plain.ckpt")
    model = ["--checkpoint", str(tmp_path / "plain.ckpt"), "-o"]
    assert main(["export", *model, str(tmp_path / "exported")]) == 0
    assert written == ["analysis.onnx", "hyper_synthesis.onnx", "context.onnx", "synthesis.onnx"]
    photo = torch.from_numpy(chelsea()[:150, :200].copy()).permute(2, 0, 1)[None]
    sent = Sender(tmp_path / "exported" / "send").encode(hwc(photo))
    (tmp_path / "sent.aeic").write_bytes(sent)
    assert main(["decompress", str(tmp_path / "sent.aeic"), "--float32", *model, str(tmp_path)]) == 0
    received = pil_to_tensor(Image.open(tmp_path / "sent.png"))
    assert received.shape == photo.shape[1:]
    assert_received(Receiver(tmp_path / "exported" / "receive"), sent, received)
