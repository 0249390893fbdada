"""`evaluate`: its figures are those of the files that `compress` writes and of the pictures that `decompress` shows."""

import json
import multiprocessing

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from skimage import data
from skimage.metrics import peak_signal_noise_ratio
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchvision.models import alexnet

from aeic_lightning.bitstream.stream import Bitstream, reconstruct
from aeic_lightning.cli import main
from aeic_lightning.errors import UserError
from aeic_lightning.images import from_uint8
from aeic_lightning.metrics.features import LPIPS
from aeic_lightning.models.backbones import Lite0
from aeic_lightning.models.random_model import random_model, save
from aeic_lightning.study import evaluation_workers
from aeic_lightning.study.evaluate import evaluate_files, file_samples
from aeic_lightning.study.measurement import measurement, open_images
from aeic_lightning.study.results import read_result, with_part_in_training
from aeic_lightning.study.run_description import seen_in_training
from aeic_lightning.systems import OptimizationConfig, TeacherSystem
from callbacks.distribution import PatchFID
from callbacks.quality import QualityMetrics
from datamodules import ImageFolder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two crops of photographs, one of them in a sub-folder and too small for MS-SSIM."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deeper").mkdir()
    Image.fromarray(data.chelsea()[:180, :200]).save(folder / "cat.png")
    Image.fromarray(data.astronaut()[:96, 100:228]).save(folder / "deeper" / "woman.png")
    return folder


@pytest.fixture
def checkpoint(tmp_path, codec_config):
    save(random_model(codec_config), tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


def array(path):
    return np.asarray(Image.open(path).convert("RGB"))


def tensor(path):
    return torch.from_numpy(array(path).copy()).permute(2, 0, 1)


def noisy_copies(photos, folder):
    """Reconstructions of the photographs, with noise."""
    rng = np.random.default_rng(0)
    for path in photos.rglob("*.png"):
        target = folder / path.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        noise = rng.normal(0, 20, array(path).shape)
        Image.fromarray(np.clip(array(path) + noise, 0, 255).astype(np.uint8)).save(target)
    return folder


def test_figures_are_those_of_the_files_and_pictures(checkpoint, photos, tmp_path, capsys):
    words = ["--checkpoint", str(checkpoint), "-o"]
    assert main(["compress", str(photos), *words, str(tmp_path / "streams")]) == 0
    assert main(["decompress", str(tmp_path / "streams"), *words, str(tmp_path / "decoded")]) == 0
    out = tmp_path / "result.json"
    words = ["evaluate", "--images", str(photos), *words, str(out), "--pictures", str(tmp_path / "pictures")]
    assert main([*words, "--label", "lambda=2", "--label", "arm=L_enc", "--name", "mine"]) == 0

    result = read_result(out)
    assert (result.name, result.kind) == ("mine", "checkpoint")
    assert result.labels == {"depth": 1, "widths": "8-8-16-16-32", "lambda": 2, "arm": "L_enc"}
    assert [row["name"] for row in result.images] == ["cat", "deeper/woman"]
    assert result.metrics["ms_ssim"]["images"] == 1
    lpips = LPIPS("lite0")
    for row in result.images:
        original, decoded = photos / f"{row['name']}.png", tmp_path / "decoded" / f"{row['name']}.png"
        assert row["bytes"] == (tmp_path / "streams" / f"{row['name']}.aeic").stat().st_size
        assert row["bpp"] == 8 * row["bytes"] / (row["height"] * row["width"])
        assert row["psnr"] == pytest.approx(peak_signal_noise_ratio(array(original), array(decoded)))
        x, x_hat = (from_uint8(tensor(path))[None] for path in (original, decoded))
        assert row["lpips_lite0"] == pytest.approx(lpips(x_hat, x).item(), rel=1e-4)
        assert row["encode_seconds"] > 0
        assert np.array_equal(array(result.pictures[row["name"]]), array(decoded))
        assert np.array_equal(array(result.original(row["name"])), array(original))
    assert set(result.metric_info) == {*result.metrics, *result.set_metrics}
    printed = capsys.readouterr().out
    assert f"{result.images[0]['bytes']} bytes" in printed
    assert len((tmp_path / "result.csv").read_text().splitlines()) == 3


class FromStreams(TeacherSystem):
    """Validates on the pictures that its streams decode to, not on those of the float32 pass."""

    def evaluate_batch(self, batch):
        bitstream = Bitstream(self.model)
        x_hat = reconstruct(self.model, bitstream.decode(bitstream.encode(batch["image"])))
        return super().evaluate_batch(batch) | {"x_hat": from_uint8(x_hat)[None]}


@pytest.mark.parametrize(("kind", "close"), [(FromStreams, 1e-4), (TeacherSystem, 5e-2)])
def test_figures_are_those_of_the_callbacks(photos, tmp_path, codec_config, kind, close):
    """Of the same checkpoint and images. In training the pictures come from the float32 pass; the stream's exact
    arithmetic rounds a few latents the other way, so that bytes are equal but figures only close."""
    model = random_model(codec_config)
    save(model, tmp_path / "model.ckpt")
    loss = {"rate": 0.8, "mse": 2.0}
    system = kind(codec_config, model.decoder.config, loss, OptimizationConfig())
    system.model.load_state_dict(model.state_dict())
    quality, patches = QualityMetrics(), PatchFID(patch_size=64, min_patches=2, min_images=2)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, default_root_dir=tmp_path, callbacks=[quality, patches])  # fmt: skip
    trainer.validate(system, ImageFolder(val_dir=str(photos)), verbose=False)
    theirs = json.loads((tmp_path / "metrics_val.json").read_text())

    out = tmp_path / "result.json"
    assert main(["evaluate", "--checkpoint", str(tmp_path / "model.ckpt"), "--images", str(photos), "-o", str(out),
                 "--patch-size", "64", "--min-patches", "2", "--min-images", "2",
                 "--backbones", "lite0"]) == 0  # fmt: skip
    ours = read_result(out)
    for row, other in zip(ours.images, theirs["images"], strict=True):
        assert set(row) == {*other, "encode_seconds", "decode_seconds"}
        for name in ("name", "height", "width", "crc32", "bytes", "bpp"):
            assert row[name] == other[name]
        assert row["bits_estimate"] == pytest.approx(other["bits_estimate"], rel=2e-2), "of the file's own latents"
        assert 0 < 8 * row["bytes"] - row["bits_estimate"] < 8 * 32, "header, check and coder"
        for name in {"psnr", "ms_ssim", "lpips_lite0", "dists_lite0"} & set(row):
            assert row[name] == pytest.approx(other[name], rel=close)
    assert set(ours.set_metrics) == set(theirs["set_metrics"])
    for name, figure in ours.set_metrics.items():
        assert figure["patches"] == theirs["set_metrics"][name]["patches"]
        assert figure["value"] == pytest.approx(theirs["set_metrics"][name]["value"], rel=10 * close)
    for name, entry in theirs["metric_info"].items():
        assert ours.metric_info[name] == entry


def test_processes_side_by_side_give_the_same(checkpoint, photos, tmp_path, monkeypatch):
    # Forked instead of started anew, which would import everything once more in each.
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(evaluation_workers, "get_context", {"spawn": fork}.get)
    words = ["evaluate", "--checkpoint", str(checkpoint), "--images", str(photos), "--backbones", "lite0",
             "--patch-size", "64", "--min-patches", "2", "--min-images", "2"]  # fmt: skip
    for name, more in (("one", []), ("two", ["--workers", "2"])):
        assert main([*words, "-o", str(tmp_path / f"{name}.json"), "--pictures", str(tmp_path / name), *more]) == 0
    one, two = (read_result(tmp_path / f"{name}.json") for name in ("one", "two"))

    def timeless(rows):
        return [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in rows]

    assert timeless(one.images) == timeless(two.images)
    assert one.set_metrics == two.set_metrics
    assert two.metric_info["encode_seconds"]["options"]["processes"] == 2
    for name, picture in one.pictures.items():
        assert picture.read_bytes() == two.pictures[name].read_bytes()


def test_fid_is_that_of_torchmetrics(photos, tmp_path):
    """Fed with the patches themselves, cut by hand, and the network."""

    class Features(nn.Module):
        num_features = 1280

        def __init__(self):
            super().__init__()
            self.lite0 = Lite0()

        def forward(self, patches):
            return self.lite0.embedding(from_uint8(patches))

    decoded = noisy_copies(photos, tmp_path / "decoded")
    fid = FrechetInceptionDistance(Features(), normalize=False).set_dtype(torch.float64)
    count = 0
    for path in sorted(photos.rglob("*.png")):
        for file, real in ((path, True), (decoded / path.relative_to(photos), False)):
            image = tensor(file)
            patches = [image[:, top : top + 64, left : left + 64]
                       for shift in (0, 32)
                       for top in range(shift, image.shape[1] - 63, 64)
                       for left in range(shift, image.shape[2] - 63, 64)]  # fmt: skip
            fid.update(torch.stack(patches), real=real)
            count += len(patches) * real
    result = evaluate_files(
        open_images(str(photos)),
        open_images(str(decoded)),
        measurement(patch_size=64, min_patches=2, min_images=2),
        name="noise",
    )
    assert result.set_metrics["fid_lite0"]["patches"] == count
    assert result.set_metrics["fid_lite0"]["value"] == pytest.approx(fid.compute().item(), rel=1e-3)
    assert "without rate" in " ".join(result.notes)


def test_pairs_are_joined_by_name_not_by_place(tmp_path):
    """Suffixes turn the order of the files round: a.png < a.s.png, but a.s.png < a.tif."""
    folders = {"originals": (".png", ".png"), "decoded": (".tif", ".png"), "streams": (".z", ".aeic")}
    for folder, suffixes in folders.items():
        (tmp_path / folder).mkdir()
        for number, (name, suffix) in enumerate(zip(("a", "a.s"), suffixes, strict=True)):
            if folder == "streams":
                (tmp_path / folder / (name + suffix)).write_bytes(bytes(10 + number))
            else:
                Image.new("RGB", (9, 8), (number, 0, 0)).save(tmp_path / folder / (name + suffix))
    originals, decoded = (open_images(str(tmp_path / folder)) for folder in ("originals", "decoded"))
    assert originals.names == decoded.names[::-1] == ["a", "a.s"]
    samples = list(file_samples(originals, decoded, tmp_path / "streams"))
    assert [sample.name for sample in samples] == ["a", "a.s"]
    for number, sample in enumerate(samples):
        assert torch.equal(sample.x, sample.x_hat)
        assert sample.x[0].unique().tolist() == [number]
        assert sample.bytes == 10 + number


def test_too_few_patches_are_said_in_the_file(photos, tmp_path):
    decoded, out = noisy_copies(photos, tmp_path / "decoded"), tmp_path / "r.json"
    words = [
        "evaluate",
        "--images",
        str(photos),
        "--reconstructions",
        str(decoded),
        "-o",
        str(out),
        "--patch-size",
        "64",
        "--min-images",
        "2",
    ]
    assert main(words) == 0
    result = read_result(out)
    assert result.set_metrics["fid_lite0"] == {
        "value": None, "patches": 13, "refused": "13 patches of 64 pixels, below min_patches=400",
    }  # fmt: skip
    assert result.value("fid_lite0") is None


def test_many_patches_of_one_image_are_no_set_of_images(tmp_path):
    """512 x 512 pixels give 481 patches of 32, more than enough, but of one image."""
    for folder in ("originals", "decoded"):
        (tmp_path / folder).mkdir()
        Image.fromarray(data.astronaut()).save(tmp_path / folder / "astronaut.png")
    words = ["evaluate", "--images", str(tmp_path / "originals"), "--reconstructions", str(tmp_path / "decoded"),
             "--backbones", "lite0", "--patch-size", "32", "-o", str(tmp_path / "r.json")]  # fmt: skip
    assert main(words) == 0
    assert read_result(tmp_path / "r.json").set_metrics["fid_lite0"] == {
        "value": None, "patches": 481, "refused": "1 images with patches of 32 pixels, below min_images=50",
    }  # fmt: skip


def test_pictures_and_files_of_any_codec(photos, tmp_path):
    for path in photos.rglob("*.png"):
        target = (tmp_path / "jpeg" / path.relative_to(photos)).with_suffix(".jpg")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(target, quality=30)
    out, jpeg = tmp_path / "r.json", str(tmp_path / "jpeg")
    assert (
        main(["evaluate", "--images", str(photos), "--reconstructions", jpeg, "--streams", jpeg, "-o", str(out)]) == 0
    )
    result = read_result(out)
    assert (result.name, result.kind, result.notes[1:]) == ("jpeg", "files", [])
    for row in result.images:
        file = tmp_path / "jpeg" / f"{row['name']}.jpg"
        assert row["bytes"] == file.stat().st_size
        assert row["psnr"] == pytest.approx(peak_signal_noise_ratio(array(photos / f"{row['name']}.png"), array(file)))


@pytest.mark.parametrize("damage", ["missing", "extra", "size", "stream", "broken"])
def test_pairs_that_do_not_fit_are_refused(photos, tmp_path, capsys, damage):
    decoded, streams = noisy_copies(photos, tmp_path / "decoded"), noisy_copies(photos, tmp_path / "streams")
    woman = decoded / "deeper" / "woman.png"
    if damage == "missing":
        woman.rename(decoded / "deeper" / "man.png")  # the counts agree, the names do not
        message = "1 original(s) with no reconstruction, such as 'deeper/woman'"
    elif damage == "extra":
        (decoded / "more.png").write_bytes(woman.read_bytes())
        message = "2 originals and 3 reconstructions: 1 reconstruction(s) with no original, such as 'more'"
    elif damage == "size":
        Image.new("RGB", (128, 95)).save(woman)
        message = "deeper/woman: the original is 128x96, its reconstruction 128x95"
    elif damage == "stream":
        (streams / "cat.png").unlink()
        message = "1 original(s) with no compressed file, such as 'cat'"
    else:
        woman.write_bytes(woman.read_bytes()[:200])
        message = "cut short or damaged"
    out = tmp_path / "out" / "r.json"
    words = ["--reconstructions", str(decoded), "--streams", str(streams), "-o", str(out)]
    assert main(["evaluate", "--images", str(photos), *words]) == 2
    assert message in capsys.readouterr().err
    assert not out.parent.exists()


def test_bad_input(checkpoint, photos, tmp_path, capsys):
    def refused(*words):
        assert main(["evaluate", *map(str, words)]) == 2
        return capsys.readouterr().err

    out = tmp_path / "r.json"
    out.write_text("mine")
    model = ("--checkpoint", checkpoint, "--images")
    assert "exists; remove it" in refused(*model, photos, "-o", out)
    assert out.read_text() == "mine"
    out = tmp_path / "new.json"
    assert "name a .json file" in refused(*model, photos, "-o", tmp_path / "r.csv")
    assert "there is no folder" in refused(*model, tmp_path / "gone", "-o", out)
    assert "no image in" in refused(*model, tmp_path, "-o", out)
    assert "write KEY=VALUE" in refused(*model, photos, "-o", out, "--label", "x")
    assert "no device 'gpu'" in refused(*model, photos, "-o", out, "--device", "gpu")
    assert "no backbone 'resnet'" in refused(*model, photos, "-o", out, "--backbones", "resnet")
    assert "no AlexNet weights" in refused(*model, photos, "-o", out, "--backbones", "alex")
    assert "--streams goes with" in refused(*model, photos, "-o", out, "--streams", photos)
    assert "crop the originals alone" in refused(
        "--images", photos, "--reconstructions", photos, "-o", out, "--max-size", "9", "9"
    )
    assert not out.exists()


def test_sample_photos_need_no_folder():
    images = open_images("sample-photos", (384, 512))
    assert {name: tuple(x.shape) for name, x in images} == {
        "chelsea": (3, 300, 451), "china": (3, 384, 512), "flower": (3, 384, 512),
    }  # fmt: skip
    china = dict(open_images("sample-photos"))["china"]
    assert china.shape == (3, 427, 640)
    assert torch.equal(dict(images)["china"], china[:, 21:405, 64:576])


def test_labels_and_costs_are_those_of_the_run(make_run, codec_config, photos, tmp_path):
    settings = {"loss": {"rate": 4.0, "mse": 2.0, "lpips": 0.0}}
    folder = make_run("student", role="Student", seed=3, labels={"arm": "none"}, settings=settings)
    (folder / "checkpoints").mkdir()
    save(random_model(codec_config), folder / "checkpoints" / "last.ckpt")
    out = tmp_path / "r.json"
    words = ["--checkpoint", str(folder / "checkpoints" / "last.ckpt"), "--images", str(photos), "-o", str(out)]
    assert main(["evaluate", *words]) == 0
    result, run = read_result(out), read_result(folder)
    assert (result.name, result.costs) == ("student", run.costs)
    assert result.labels | {"seed": 3} == run.labels
    assert result.metric_info["psnr"]["in_training"] == "in the loss"
    assert result.metric_info["lpips_lite0"]["in_training"] == "held out"


def test_what_was_trained_on_is_said():
    backbones = {
        "psnr": None,
        "ms_ssim": None,
        "bpp": None,
        "encode_seconds": None,
        "dists": "vgg",
        "lpips_alex": "alex",
    }
    backbones |= dict.fromkeys(("lpips_lite0", "dists_lite0", "fid_lite0"), "lite0")
    info = {name: {"backbone": backbone} for name, backbone in backbones.items()}

    def parts(**loss):
        config = {"model": {"init_args": {"objective": loss}}}
        return {
            name: entry.get("in_training")
            for name, entry in with_part_in_training(info, seen_in_training(config)).items()
        }

    assert parts(mse=1.0) == dict.fromkeys(info, "held out") | {
        "psnr": "in the loss",
        "bpp": None,
        "encode_seconds": None,
    }
    with_lpips = parts(mse=0.0, lpips=1.0)
    assert with_lpips["psnr"] == "held out"
    assert with_lpips["lpips_lite0"] == "in the loss"
    assert with_lpips["fid_lite0"] == with_lpips["dists_lite0"] == "its network is in the loss"
    assert parts(edge_dists={"weight": 1.0, "backbone": "vgg"})["dists"] == "in the loss"
    assert parts(adversarial=0.1)["lpips_lite0"] == "its network is in the loss"


def test_weights_at_hand_give_their_figures(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    assert "alex, vgg, inception" in measurement().notes[0]
    weights = {f"features.{key}": value for key, value in alexnet().features.state_dict().items()}
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(weights, tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth")
    found = measurement()
    assert [network.name for network in found.quality.networks] == [
        *("lpips_lite0", "lpips_lite2", "lpips_alex"),
        *("dists_lite0", "dists_lite2"),
        "same_class_lite2",
    ]
    assert found.notes == ["without metrics on vgg, inception: their weights are not here"]
    assert found.quality.info["lpips_alex"]["version"].startswith("lpips ")
    with pytest.raises(UserError, match="no VGG16 weights"):
        measurement(["vgg"])
