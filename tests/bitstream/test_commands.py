"""compress, decompress and verify from the command line."""

import json

import numpy as np
import pytest
from PIL import Image

from aeic_lightning import torch_settings
from aeic_lightning.cli import main
from aeic_lightning.cli.commands import bench
from aeic_lightning.models.random_model import random_model, save
from tests.bitstream.forked_worker import fork_workers


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "model.ckpt"
    save(model, path)
    return str(path)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, size in (("one.png", (40, 50)), ("deeper/two.png", (1, 1))):
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    return folder


def test_folder_in_folder_out(checkpoint, photos, tmp_path, capsys):
    streams, pictures = tmp_path / "streams", tmp_path / "pictures"
    assert main(["compress", str(photos), "--checkpoint", checkpoint, "-o", str(streams)]) == 0
    out = capsys.readouterr().out
    sizes = [(streams / name).stat().st_size for name in ("deeper/two.aeic", "one.aeic")]
    assert f"50x40  {sizes[1]} bytes  {8 * sizes[1] / 2000:.5f} bpp" in out
    assert f"2 files, 0 failed, {sum(sizes)} bytes, {8 * sum(sizes) / 2001:.5f} bpp" in out

    assert main(["decompress", str(streams), "--checkpoint", checkpoint, "-o", str(pictures)]) == 0
    image = Image.open(pictures / "one.png")
    assert (image.format, image.size) == ("PNG", (50, 40))
    assert "generative decoder" in image.text["Comment"]
    assert Image.open(pictures / "deeper/two.png").size == (1, 1)


def test_nothing_is_overwritten_without_force(checkpoint, photos, tmp_path, capsys):
    args = ["compress", str(photos / "one.png"), "--checkpoint", checkpoint, "-o", str(tmp_path)]
    assert main(args) == 0
    before = (tmp_path / "one.aeic").read_bytes()
    (tmp_path / "one.aeic").write_bytes(b"mine")
    assert main(args) == 2
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "one.aeic").read_bytes() == b"mine"
    assert main([*args, "--force"]) == 0
    assert (tmp_path / "one.aeic").read_bytes() == before


def test_a_damaged_file_among_good_ones(checkpoint, photos, tmp_path, capsys):
    streams = tmp_path / "streams"
    main(["compress", str(photos), "--checkpoint", checkpoint, "-o", str(streams)])
    (streams / "one.aeic").write_bytes((streams / "one.aeic").read_bytes()[:-1])
    assert main(["decompress", str(streams), "--checkpoint", checkpoint, "-o", str(tmp_path / "out")]) == 2
    assert "one.aeic: the check value" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").rglob("*.png")] == ["two.png"]


def test_two_images_of_one_name_keep_their_suffixes(checkpoint, photos, tmp_path):
    Image.new("RGB", (5, 5)).save(photos / "one.jpg")
    streams = tmp_path / "streams"
    assert main(["compress", str(photos), "--checkpoint", checkpoint, "-o", str(streams)]) == 0
    names = sorted(str(path.relative_to(streams)) for path in streams.rglob("*.aeic"))
    assert names == ["deeper/two.aeic", "one.jpg.aeic", "one.png.aeic"]


def test_two_sources_with_one_target(checkpoint, photos, tmp_path, capsys):
    Image.new("RGB", (5, 5)).save(photos / "deeper" / "one.png")
    sources = [str(photos / "one.png"), str(photos / "deeper" / "one.png")]
    assert main(["compress", *sources, "--checkpoint", checkpoint, "-o", str(tmp_path / "out")]) == 2
    assert "would both be written" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_too_large_to_be_a_stream_is_not_read(checkpoint, tmp_path, capsys):
    with (tmp_path / "huge.aeic").open("wb") as file:
        file.truncate(1 << 40)  # a sparse terabyte
    args = ["decompress", str(tmp_path / "huge.aeic"), "--checkpoint", checkpoint, "-o", str(tmp_path / "out")]
    assert main(args) == 2
    assert "more than any stream has" in capsys.readouterr().err


def test_wrong_checkpoint(model, checkpoint, photos, tmp_path, capsys):
    save(random_model(model.codec.config, seed=1), tmp_path / "other.ckpt")
    main(["compress", str(photos), "--checkpoint", checkpoint, "-o", str(tmp_path / "streams")])
    args = ["decompress", str(tmp_path / "streams"), "--checkpoint", str(tmp_path / "other.ckpt")]
    assert main([*args, "-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("another checkpoint") == 2


def test_bench(checkpoint, tmp_path, capsys, monkeypatch):
    # In this process instead of one of its own, which imports everything anew: its peak is then that of the tests.
    monkeypatch.setattr(bench, "peak_of", lambda args, half, height, width: bench.peak(args, half, (height, width)))
    args = ["bench", "--checkpoint", checkpoint, "--sizes", "64x96", "--repeats", "1", "--threads", "1"]
    assert main([*args, "-o", str(tmp_path / "bench.json")]) == 0
    report = json.loads((tmp_path / "bench.json").read_text())
    assert set(report["exact products"]) == {"15 bits", "8 bits"}
    (size,) = report["sizes"]
    assert (size["height"], size["width"]) == (96, 64)
    assert set(size["parts"]) == {"encode", "g_a", "latents", "decode latents", "g_s", "denoiser", "VAE decoder"}
    assert size["parts"]["encode"]["plain float32"]["ratio"] == 1
    assert all(0.05 < gib < 8 for gib in size["peak_memory_gib"].values())
    assert "exact products: 15 bits" in capsys.readouterr().out


def test_fast_says_what_it_took(checkpoint, photos, tmp_path, capsys, monkeypatch):
    for quicker, word in ((True, "bfloat16\n"), (False, "float32, since bfloat16 is slower")):
        monkeypatch.setattr(torch_settings, "_bfloat16", quicker)
        streams = tmp_path / word[:8]
        assert main(["compress", str(photos), "--checkpoint", checkpoint, "-o", str(streams), "--fast"]) == 0
        assert f"--fast: {word}" in capsys.readouterr().out


def test_verify(checkpoint, photos, capsys, forked, monkeypatch):
    fork_workers(forked, monkeypatch)
    settings = "1 thread,2 threads,oneDNN off"
    assert main(["verify", str(photos), "--checkpoint", checkpoint, "--settings", settings]) == 0
    out = capsys.readouterr().out
    assert out.count("2/2") >= 9
    assert "no mismatch" in out


def test_verify_in_processes_that_a_setting_reaches_from_their_start(checkpoint, photos, capsys):
    words = ["verify", str(photos / "one.png"), "--checkpoint", checkpoint, "--settings", "PyTorch without AVX"]
    assert main(words) == 0
    assert "no mismatch" in capsys.readouterr().out


def test_verify_notices_drift(checkpoint, photos, capsys, forked, monkeypatch):
    """Worker processes whose float64 products are off by one unit, as those of another machine might be."""
    fork_workers(forked, monkeypatch, drift=1)
    args = [
        "verify",
        str(photos / "one.png"),
        "--checkpoint",
        checkpoint,
        "--settings",
        "float32 products,float64 products",
    ]
    assert main(args) == 1
    out = capsys.readouterr().out
    assert "mismatch: " in out
    assert "not the sender's" in out
    assert "2 mismatches" in out  # neither reads the other's


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["verify", "--random", "1", "--settings", "3 threads"], "no setting '3 threads'"),
        (["verify"], "nothing to encode"),
        (["bench", "--sizes", "big"], "not a size"),
        (["compress", "nowhere.png", "--checkpoint", "c", "-o", "o"], "no file or folder nowhere.png"),
        (["export", "--checkpoint", "c", "-o", "."], "exists"),
    ],
)
def test_bad_input(args, message, capsys):
    assert main(args) == 2
    assert message in capsys.readouterr().err
