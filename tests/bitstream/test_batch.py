"""Several images a pass: the files and latents of one after the other."""

import numpy as np
import pytest
import torch
from PIL import Image

from aeic_lightning.bitstream import wire
from aeic_lightning.bitstream.stream import Bitstream, in_passes
from aeic_lightning.cli import main
from aeic_lightning.images import from_uint8
from aeic_lightning.models.random_model import save
from tests.bitstream.small import LEVELS, small


@pytest.fixture(scope="module")
def levelled():
    return Bitstream(small(LEVELS))


@pytest.fixture
def pictures(picture):
    """Three of one size, of very different contrast: peaks that they shared would change all but one of them."""
    return torch.cat([picture(70, 90, seed) * scale for seed, scale in enumerate((1.0, 0.02, 0.3))])


@pytest.mark.parametrize("rate", [{}, {"level": 0.4}, {"max_bytes": 260}, {"bpp": 0.6}])
def test_files_are_those_of_single_images(levelled, pictures, rate):
    alone = [levelled.encode_at(x, **rate) for x in pictures.split(1)]
    together = levelled.encode_batch(pictures, **rate)
    for one, other in zip(alone, together, strict=True):
        assert one.data == other.data
        assert torch.equal(one.y_hat, other.y_hat)
        assert torch.equal(one.z_hat, other.z_hat)
        assert (one.bits, one.coded, one.escaped, one.level) == (other.bits, other.coded, other.escaped, other.level)


def test_each_image_of_a_batch_has_a_level_of_its_own(levelled, pictures):
    files = levelled.encode_batch(pictures, max_bytes=260)
    assert len({file.level for file in files}) > 1


@pytest.mark.parametrize("threads", [1, 2])
def test_latents_are_those_of_single_files(bitstream, picture, threads):
    """Of images whose sizes differ, while those of their latents agree."""
    sent = [bitstream.encode_fully(x) for x in (picture(70, 90), picture(66, 95, 1) * 0.02, picture(65, 81, 2) * 0.3)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = bitstream.decode_batch([one.data for one in sent])
    finally:
        torch.set_num_threads(before)
    assert [(one.height, one.width) for one in got] == [(70, 90), (66, 95), (65, 81)]
    for one, other in zip(sent, got, strict=True):
        assert torch.equal(one.y_hat, other.y_hat)
        assert torch.equal(one.z_hat, other.z_hat)


def test_files_of_different_sizes_are_no_batch(bitstream, picture):
    files = [bitstream.encode(picture(64, 64)), bitstream.encode(picture(64, 65))]
    with pytest.raises(ValueError, match="different sizes"):
        bitstream.decode_batch(files)


def test_passes_are_of_neighbours():
    words = ["a", "b", "cc", "d", "e", "f", "g"]
    assert list(in_passes(words, 3, len)) == [["a", "b"], ["cc"], ["d", "e", "f"], ["g"]]


def test_commands_with_a_batch(levelled, tmp_path, monkeypatch, capsys):
    """The same files as without, in as many passes as it takes; one that cannot be read does not take others along."""
    checkpoint, photos = tmp_path / "model.ckpt", tmp_path / "photos"
    save(small(LEVELS), checkpoint)
    photos.mkdir()
    random = np.random.default_rng(0)
    for number, width in enumerate((40, 40, 50, 40, 40, 40)):
        Image.fromarray(random.integers(0, 256, (30, width, 3), dtype=np.uint8)).save(photos / f"{number}.png")
    (photos / "3.png").write_bytes(b"no image")
    passes = []
    encode = Bitstream.encode_latents_batch
    monkeypatch.setattr(
        Bitstream, "encode_latents_batch", lambda self, y, *rest: passes.append(len(y)) or encode(self, y, *rest)
    )
    words = ["compress", str(photos), "--checkpoint", str(checkpoint)]
    for options in ([], ["--batch", "4"], ["--batch", "2", "--workers", "2"]):
        passes.clear()
        out = tmp_path / f"out{len(options)}"
        assert main([*words, "-o", str(out), *options]) == 2
        assert capsys.readouterr().err.count("error: ") == 1
        if len(options) < 4:
            assert passes == ([2, 1, 2] if options else [1] * 5)
    written = [{p.name: p.read_bytes() for p in (tmp_path / f"out{n}").iterdir()} for n in (0, 2, 4)]
    assert len(written[0]) == 5
    assert written[0] == written[1] == written[2]

    # One whose bytes are in order while its latents are not the sender's, in a pass with another.
    sent = wire.unpack((tmp_path / "out0/4.aeic").read_bytes(), levelled.fingerprint, has_level=True)
    wrong = wire.pack(sent._replace(check=bytes(len(sent.check))), levelled.fingerprint)
    (tmp_path / "out0/4.aeic").write_bytes(wrong)
    words = ["decompress", str(tmp_path / "out0"), "--checkpoint", str(checkpoint), "--batch", "4"]
    assert main([*words, "-o", str(tmp_path / "png")]) == 2
    assert "4.aeic: the decoded latents are not the sender's" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "png").iterdir()) == ["0.png", "1.png", "2.png", "5.png"]


def test_a_size_that_one_image_cannot_reach_is_the_error_of_that_image(levelled, tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    smallest = []
    for name, image in (("noise", noise), ("plain", np.full_like(noise, 90))):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        smallest.append(len(levelled.encode(from_uint8(torch.from_numpy(image).permute(2, 0, 1)[None]), 0.0)))
    assert smallest[0] > smallest[1]
    save(small(LEVELS), tmp_path / "model.ckpt")
    words = ["compress", str(tmp_path / "noise.png"), str(tmp_path / "plain.png"), "--bytes", str(smallest[0] - 1)]
    words += ["--checkpoint", str(tmp_path / "model.ckpt"), "--batch", "2", "-o", str(tmp_path / "out")]
    assert main(words) == 2
    captured = capsys.readouterr()
    assert "noise.png: " in captured.err
    assert "plain.png" not in captured.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["plain.aeic"]


def test_a_batch_below_one(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert main(["compress", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--batch", "0"]) == 2
    assert "--batch is 0" in capsys.readouterr().err
