"""Every experiment file runs for two steps, and what it leaves can be tabled, compressed, classified and decoded."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tables import plain
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.transforms.functional import pil_to_tensor

from aeic_lightning.bitstream.stream import Bitstream, reconstruct
from aeic_lightning.checkpoints.checkpoint import load_model
from aeic_lightning.classification.checkpoint import load_classifier
from aeic_lightning.classification.comparison import compare_accuracy
from aeic_lightning.cli import main
from aeic_lightning.config import load_config
from aeic_lightning.images import from_uint8, save_png, to_uint8
from aeic_lightning.metrics.pixels import psnr
from aeic_lightning.study.results import read_result, read_results
from aeic_lightning.study.sweep_file import read_sweep
from datamodules.labelled import SampleDigits
from tests.experiment_names import names

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "classification"
SWEEP = ROOT / "experiments" / "sweeps" / "classification.yaml"
INCLUDED = {"base", "classifier", "step2", "head"}
BESIDE_THE_SWEEP = {"step1_logits"}
IMAGES = 3


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All runs of the tiny sweep in its order and what stands beside it, of two steps each, with three test images."""
    patch = pytest.MonkeyPatch()
    patch.setattr(SampleDigits, "VALIDATION", IMAGES)
    patch.chdir(ROOT)
    root = tmp_path_factory.mktemp("classification")
    sweep = read_sweep(SWEEP, [f"vars.root={root}"])
    commands = []
    for run in sweep.runs:
        words = [word for word in run.command if word.startswith(("--", "experiments", str(ROOT)))]
        config = words[words.index("--config") + 1]
        commands.append([config, *(word for word in words if word.startswith("--vars."))])
    commands += [[str(FOLDER / f"{name}.yaml"), f"--vars.root={root}"] for name in BESIDE_THE_SWEEP]
    for command in commands:
        small = ["--vars.steps=2", "--vars.val_every=2", "--vars.batch_size=4", "--data.init_args.eval_batch_size=3"]
        small += ["--trainer.log_every_n_steps=1"]
        assert main(["fit", "--config", *command, *small]) == 0
    yield root, [root / name for name in sweep.compare["runs"]]
    patch.undo()


def test_every_file_belongs_to_the_sweep_or_is_included():
    sweep = load_config([SWEEP])
    known = {Path(run["config"]).stem for run in sweep["runs"]} | INCLUDED | BESIDE_THE_SWEEP
    assert {name for name in names("classification") if not name.startswith("paper")} == known
    assert set(sweep["compare"]["runs"]) == {run["name"] for run in sweep["runs"]} - {"codec"}


def test_the_table_is_of_files(runs, tmp_path, capsys):
    root, folders = runs
    found = {result.name: result for result in compare_accuracy(folders, tmp_path)}
    files = [f"accuracy.{end}" for end in ("csv", "json", "md", "png")]
    assert [path.name for path in sorted(tmp_path.iterdir())] == files
    assert "| step1 | y, unquantised | - | - |" in plain(capsys.readouterr().out)
    reread = read_results([tmp_path / "accuracy.json"])
    assert [result.name for result in reread] == [folder.name for folder in folders]
    assert reread[1].images == found["step2_q1"].images
    data = SampleDigits(eval_batch_size=IMAGES)
    data.setup("test")
    (batch,) = data.test_dataloader()
    for name in ("step2_q1", "head_frozen"):
        classifier = load_classifier(root / name / "checkpoints" / "last.ckpt")
        for x, image in zip(batch["image"], found[name].images, strict=True):
            file = classifier.codec.bitstream.encode(x[None])
            assert image["bytes"] == len(file)
            assert image["bpp"] == 8 * len(file) / 64**2
        # The run folder says the same of its files.
        validated = read_result(root / name)
        assert [image["bytes"] for image in validated.images] == [image["bytes"] for image in found[name].images]
        assert validated.value("bpp") == pytest.approx(found[name].value("bpp"))
        assert {"top1", "top5", "psnr"} <= set(validated.metrics)
        assert found[name].value("psnr") == pytest.approx(validated.value("psnr"), abs=0.3)
    assert found["step1"].value("psnr") > 0
    assert "bpp" not in found["step1"].metrics


def test_tensorboard_has_accuracy_rate_and_distortion(runs):
    root, _ = runs
    for name in ("step2_q1", "head_joint"):
        events = EventAccumulator(str(root / name)).Reload()
        assert {"val/top1", "val/top5", "val/bpp", "val/psnr"} <= set(events.Tags()["scalars"])
        assert "plots/rate_distortion" in events.Tags()["images"]


def test_a_smaller_transformer_learns_from_the_first_steps(runs):
    root, _ = runs
    events = EventAccumulator(str(root / "step1_logits")).Reload()
    assert events.Scalars("train/logits")[-1].value > 0
    for name, width in (("step1_logits", 48), ("step1", 96)):
        classifier = load_classifier(root / name / "checkpoints" / "last.ckpt")
        assert classifier.codec.model.sizes.transformer.width == width


def test_classify_reads_what_the_system_wrote(runs, tmp_path, capsys):
    root, _ = runs
    data = SampleDigits(eval_batch_size=IMAGES)
    data.setup("test")
    (batch,) = data.test_dataloader()
    for name in ("step2_q2", "head_joint", "head_pictures"):
        checkpoint = root / name / "checkpoints" / "last.ckpt"
        classifier = load_classifier(checkpoint)
        folder = tmp_path / name
        folder.mkdir()
        expected = []
        for i, x in enumerate(batch["image"][:2]):
            file = classifier.codec.bitstream.encode(x[None])
            (folder / f"{i}.aeic").write_bytes(file)
            decoded = classifier.codec.bitstream.decode(file)
            with torch.no_grad():
                features = decoded.y_hat
                if classifier.reads == "x_hat":
                    features = from_uint8(reconstruct(classifier.codec.model, decoded)[None])
                expected.append(classifier.head(features)[0].softmax(0))
        capsys.readouterr()
        assert main(["classify", str(folder), "--checkpoint", str(checkpoint), "--top", "3", "--json"]) == 0
        lines = json.loads(capsys.readouterr().out)["files"]
        for line, probabilities in zip(lines, expected, strict=True):
            assert [found["class"] for found in line["classes"]] == [
                str(i) for i in probabilities.topk(3).indices.tolist()
            ]
            assert [found["probability"] for found in line["classes"]] == pytest.approx(
                probabilities.topk(3).values.tolist(), abs=1e-5
            )


@pytest.mark.parametrize("name", ["step2_q2", "head_joint"])
def test_compress_classify_and_decompress_share_the_file(runs, tmp_path, capsys, name):
    root, _ = runs
    checkpoint = str(root / name / "checkpoints" / "last.ckpt")
    photo = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)  # no multiple of 16
    save_png(tmp_path / "photo.png", photo)
    assert main(["compress", str(tmp_path / "photo.png"), "--checkpoint", checkpoint, "-o", str(tmp_path)]) == 0
    data = (tmp_path / "photo.aeic").read_bytes()
    assert f"{len(data)} bytes  {8 * len(data) / 3500:.5f} bpp" in capsys.readouterr().out
    assert main(["classify", str(tmp_path / "photo.aeic"), "--checkpoint", checkpoint, "--top", "1"]) == 0
    assert f"photo.aeic  {len(data)} bytes  " in capsys.readouterr().out
    out = tmp_path / "decoded"
    assert main(["decompress", str(tmp_path / "photo.aeic"), "--checkpoint", checkpoint, "-o", str(out)]) == 0

    model = load_model(checkpoint)
    with Image.open(out / "photo.png") as picture:
        assert torch.equal(pil_to_tensor(picture), reconstruct(model, Bitstream(model).decode(data)))
        assert ("Comment" in picture.text) == (name == "head_joint")  # the diffusion decoder's notice
    code = main(["compress", str(tmp_path), "--checkpoint", checkpoint, "-o", str(tmp_path / "fast"), "--fast"])
    assert code == (2 if name == "step2_q2" else 0)


def test_the_frozen_codecs_files_are_read_by_both_of_its_heads(runs, tmp_path):
    root, _ = runs
    one, other = (load_classifier(root / name / "checkpoints/last.ckpt") for name in ("head_frozen", "head_pictures"))
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    file = one.codec.bitstream.encode(x)
    assert torch.equal(other.codec.bitstream.decode(file).y_hat, one.codec.bitstream.decode(file).y_hat)


@pytest.mark.parametrize("name", ["step2_q3", "codec"])
def test_the_picture_of_a_stream_is_the_models(runs, name):
    root, _ = runs
    model = load_model(root / name / "checkpoints" / "last.ckpt")
    bitstream = Bitstream(model)
    x = torch.rand(1, 3, 50, 70) * 2 - 1
    picture = reconstruct(model, bitstream.decode(bitstream.encode(x)))
    with torch.no_grad():
        expected = to_uint8(model(x).x_hat)
    assert picture.shape == (3, 50, 70)
    assert psnr(picture[None], expected).item() > 30


def test_errors_are_one_line(runs, tmp_path, capsys):
    root, _ = runs
    checkpoint = str(root / "step2_q1" / "checkpoints" / "last.ckpt")
    (tmp_path / "bad.aeic").write_bytes(b"nonsense")
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    for words, message in (
        (["classify", str(tmp_path / "none.aeic"), "--checkpoint", checkpoint], "no file or folder"),
        (["classify", str(tmp_path / "bad.aeic"), "--checkpoint", checkpoint], "bad.aeic: the file starts with byte"),
        (["classify", str(tmp_path), "--checkpoint", str(root / "codec/checkpoints/last.ckpt")], "has no classifier"),
        (["classify", str(tmp_path), "--checkpoint", checkpoint, "--top", "0"], "--top is 0"),
        (["export", "--checkpoint", checkpoint, "-o", str(tmp_path / "export")], "not an AEIC"),
        (["accuracy", str(root / "nothing"), "-o", str(tmp_path / "out")], "holds no finished run"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err
