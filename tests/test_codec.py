"""The codec as a Python object, and weights as folders."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from aeic_lightning import Codec, torch_settings
from aeic_lightning.bitstream.stream import reconstruct
from aeic_lightning.checkpoints.checkpoint import load_model, read_checkpoint
from aeic_lightning.cli import main
from aeic_lightning.errors import UserError
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.random_model import random_model, save
from aeic_lightning.output import counted
from aeic_lightning.study.model_card import card
from aeic_lightning.zoo import EARLIER, models, writer_of

SIZES = {"context_width": 16, "context_depth": 1, "l_T_channels": 8, "l_res_channels": 8}
WIDTHS = {"synthesis_widths": [16, 16, 16], "synthesis_depths": [1, 1, 1]}


def small(rate_levels=(8.0, 2.0, 0.5)):
    levels = list(rate_levels) if rate_levels else None
    return random_model(CodecConfig([8, 8, 16, 16, 32], [1] * 5, **SIZES, **WIDTHS, rate_levels=levels))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "mine"
    card = {"command": "python -m aeic_lightning fit ...", "not good for": ["text", "medical images"]}
    Codec(small(), card=card).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def codec(folder):
    return Codec.from_pretrained(folder)


@pytest.fixture(scope="module")
def photo():
    values = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((140, 100), Image.Resampling.BICUBIC)


def test_a_photo_comes_back_in_its_size(codec, photo):
    picture = codec.decompress(codec.compress(photo))
    assert picture.mode == "RGB"
    assert picture.size == photo.size


def test_a_batch_has_the_same_bytes_and_pictures(codec, folder, photo, tmp_path, monkeypatch):
    """From Python and by `decompress --batch`; the networks run once for neighbours of one size and level."""
    images = [photo, photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT), photo, photo.resize((70, 100)), photo]
    streams = codec.compress_batch(images, level=1.0)
    assert streams == [codec.compress(image, level=1.0) for image in images]
    expected = [codec.decompress_array(data).astype(int) for data in streams]
    passes = []
    reconstruct = type(codec.model).reconstruct
    monkeypatch.setattr(
        type(codec.model), "reconstruct", lambda m, y, level=None: passes.append(len(y)) or reconstruct(m, y, level)
    )
    pictures = codec.decompress_batch(streams, size=2)
    assert passes == [2, 1, 1, 1]
    assert [picture.size for picture in pictures] == [image.size for image in images]
    assert all(abs(np.asarray(a) - b).max() <= 1 for a, b in zip(pictures, expected, strict=True))
    for number, data in enumerate(streams):
        (tmp_path / f"{number}.aeic").write_bytes(data)
    passes.clear()
    words = ["decompress", str(tmp_path), "--checkpoint", str(folder), "-o", str(tmp_path / "out"), "--batch", "4"]
    assert main(words) == 0
    assert passes == [3, 1, 1]
    for number, picture in enumerate(expected):
        assert abs(np.asarray(Image.open(tmp_path / "out" / f"{number}.png")).astype(int) - picture).max() <= 1


def test_every_kind_of_image_gives_the_same_bytes(codec, photo):
    expected = codec.compress(photo, level=1.0)
    array = np.asarray(photo)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    for image in (array, tensor, tensor[None], tensor.float() / 255, array.astype(np.float64) / 255):
        assert codec.compress(image, level=1.0) == expected
    assert codec.compress(memoryview(array), level=1.0) == expected
    low = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    rounded = np.rint(low.float().permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    assert codec.compress(low, level=1.0) == codec.compress(rounded, level=1.0)
    grey = photo.convert("L")
    assert codec.compress(grey, level=1.0) == codec.compress(np.asarray(grey), level=1.0)
    transparent = photo.convert("RGBA")
    assert codec.compress(transparent, level=1.0) == expected


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("photo.jpg", "PIL image"),
        (Path("photo.jpg"), "not a path"),
        (np.zeros((3, 8, 8), np.uint8), "H, W, 3"),
        (np.full((8, 8, 3), 2.0), r"\[0, 1\]"),
        (np.full((8, 8, 3), np.nan), r"\[0, 1\]"),
        (np.zeros((8, 8, 3), np.int32), "uint8"),
        (torch.zeros(8, 8, 3), "3, H, W"),
    ],
)
def test_what_is_no_image_is_refused(codec, image, message):
    with pytest.raises(UserError, match=message):
        codec.compress(image)


def test_a_size_is_kept_and_used(codec, photo):
    sizes = [len(codec.compress(photo, level=level)) for level in (0.0, 2.0)]
    target = sum(sizes) // 2
    data = codec.compress(photo, max_bytes=target)
    assert len(data) <= target
    assert len(data) > target - (sizes[1] - sizes[0]) / 8  # the dial has 256 positions
    assert codec.compress(photo, bpp=8 * target / (140 * 100)) == data
    assert len(codec.compress(photo, max_bytes=10**6)) == sizes[1]


def test_a_size_that_cannot_be_reached_is_said_with_the_smallest_one(codec, photo):
    smallest = len(codec.compress(photo, level=0.0))
    with pytest.raises(UserError, match=f"{smallest} bytes"):
        codec.compress(photo, max_bytes=smallest - 1)
    with pytest.raises(UserError, match="one of"):
        codec.compress(photo, max_bytes=100, level=1.0)


def test_a_model_of_one_rate_takes_a_size_that_its_file_has(photo):
    codec = Codec(small(None))
    data = codec.compress(photo)
    assert codec.levels == 0
    assert codec.compress(photo, max_bytes=len(data)) == data
    with pytest.raises(UserError, match="one rate"):
        codec.compress(photo, max_bytes=len(data) - 1)


def test_stored_values_are_what_is_used(folder, codec, photo, tmp_path):
    again = Codec.from_pretrained(folder)
    again.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["fingerprint"] == codec.fingerprint
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    for name, tensor in codec.model.state_dict().items():
        if "quantiles" not in name:
            assert torch.equal(tensor, tensor.half().float()), name
    card = (folder / "README.md").read_text()
    assert "fit" in card
    assert "medical images" in card


def test_a_checkpoint_of_fit_is_read_as_it_is(tmp_path, photo):
    model = small()
    save(model, tmp_path / "last.ckpt")
    codec = Codec.from_pretrained(tmp_path / "last.ckpt")
    assert codec.decompress_array(codec.compress(photo)).shape == (100, 140, 3)


def test_a_folder_of_weights_stands_wherever_a_checkpoint_does(folder, codec):
    checkpoint = read_checkpoint(folder, "teacher")
    assert checkpoint["model_config"]["codec"]["rate_levels"] == [8.0, 2.0, 0.5]
    model = load_model(folder)
    assert torch.equal(model.codec.gains.log_gain, codec.model.codec.gains.log_gain)


@pytest.mark.parametrize("what", ["nothing-like-it", "no/such/folder"])
def test_a_model_that_is_not_there_is_one_line(what):
    with pytest.raises(UserError, match="no file"):
        Codec.from_pretrained(what)


def test_damaged_weights_are_one_line(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-5])
    with pytest.raises(UserError, match="cannot be read"):
        Codec.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no weights of aeic_lightning"):
        Codec.from_pretrained(tmp_path)


def test_only_a_repositorys_name_is_ever_fetched(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where none of the names is a file
    asked = []

    def snapshot(name, **options):
        asked.append((name, options["revision"]))
        return str(folder)

    monkeypatch.setattr("aeic_lightning.codec.snapshot_download", snapshot)
    Codec.from_pretrained("hf:someone/a-codec", revision="v2")
    Codec.from_pretrained("someone/a-codec", hub=True)
    assert asked == [("someone/a-codec", "v2"), ("someone/a-codec", None)]
    for name in ("a-codec", "someone/a-codec", "runs/student", "./a/b", "runs/a.ckpt", "../a"):
        with pytest.raises(UserError, match="hf:OWNER/NAME"):
            Codec.from_pretrained(name)
    with pytest.raises(UserError, match="revision is for repositories"):
        Codec.from_pretrained(folder, revision="v2")
    with pytest.raises(UserError, match="token is for repositories"):
        Codec.from_pretrained(folder, token="secret")
    assert len(asked) == 2


def test_what_the_hub_refuses_is_one_line(monkeypatch):
    def snapshot(name, **options):
        raise OSError("no network\nor something")

    monkeypatch.setattr("aeic_lightning.codec.snapshot_download", snapshot)
    with pytest.raises(UserError, match=r"hf:someone/a-codec cannot be fetched .*no network or something"):
        Codec.from_pretrained("hf:someone/a-codec")


def test_a_codec_is_copied_and_pickled(codec, photo):
    expected = codec.compress(photo, level=1.0)
    for other in (copy.copy(codec), copy.deepcopy(codec), pickle.loads(pickle.dumps(codec))):
        assert other.fingerprint == codec.fingerprint
        assert other.compress(photo, level=1.0) == expected
        assert np.array_equal(other.decompress_array(expected), codec.decompress_array(expected))


def test_a_device_that_is_not_there_is_one_line(folder, photo, tmp_path, capsys):
    photo.save(tmp_path / "a.png")
    for device in ("cuda:7", "gpu", "meta"):
        with pytest.raises(UserError, match=f"device {device}"):
            Codec.from_pretrained(folder, device=device)
        words = ["--checkpoint", str(folder), "--device", device, "-o", str(tmp_path / "out")]
        assert main(["compress", str(tmp_path / "a.png"), *words]) == 2
        assert capsys.readouterr().err.startswith(f"error: device {device}")


def test_bytes_are_taken_in_every_form_and_a_path_in_none(codec, photo, tmp_path):
    data = codec.compress(photo)
    expected = codec.decompress_array(data)
    for form in (bytearray(data), memoryview(data)):
        assert np.array_equal(codec.decompress_array(form), expected)
        assert np.array_equal(codec.decompress_batch([form])[0], expected)
    for wrong in ("a.aeic", tmp_path / "a.aeic"):
        with pytest.raises(UserError, match="read_bytes"):
            codec.decompress(wrong)
    with pytest.raises(UserError, match="a stream is bytes, not list"):
        codec.decompress([1, 2])
    with pytest.raises(UserError, match="empty"):
        codec.decompress(b"")


def test_push_to_hub_uploads_weights_config_and_card(codec, monkeypatch):
    pushed = {}

    class Api:
        def __init__(self, *args, **kwargs): ...

        def create_repo(self, repo_id, **kwargs):
            return type("Url", (), {"repo_id": repo_id})()

        def upload_folder(self, repo_id, folder_path, **kwargs):
            pushed[repo_id] = sorted(path.name for path in __import__("pathlib").Path(folder_path).iterdir())

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    codec.push_to_hub("someone/a-codec")
    assert pushed == {"someone/a-codec": ["README.md", "config.json", "model.safetensors"]}


def test_the_commands_take_a_size_and_a_folder(folder, photo, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for name in "ab":
        photo.save(tmp_path / "photos" / f"{name}.png")
    words = ["--checkpoint", str(folder)]
    out = str(tmp_path / "streams")
    assert main(["compress", str(tmp_path / "photos"), "-o", out, "--bytes", "900", "--workers", "2", *words]) == 0
    files = sorted((tmp_path / "streams").glob("*.aeic"))
    assert len(files) == 2
    assert all(file.stat().st_size <= 900 for file in files)
    assert main(["decompress", out, "-o", str(tmp_path / "out"), *words]) == 0
    assert Image.open(tmp_path / "out" / "a.png").size == photo.size
    assert main(["compress", str(tmp_path / "photos"), "-o", out, "--force", "--bytes", "3", *words]) == 2
    assert "smallest" in capsys.readouterr().err


def test_a_stream_of_no_shipped_model_says_so(folder, photo, tmp_path, capsys):
    data = Codec.from_pretrained(folder).compress(photo)
    (tmp_path / "a.aeic").write_bytes(data)
    assert main(["decompress", str(tmp_path / "a.aeic"), "-o", str(tmp_path)]) == 2
    assert "none of those that ship" in capsys.readouterr().err


def test_a_stream_of_a_model_that_ships_no_more_says_where_its_weights_are(tmp_path, capsys):
    """Streams of 64x64 pixels, written by the models that shipped before."""
    streams = {
        "small-student": "af3f3f0bb2e043af8958a40097af481c5ff424fbd90ed1df967e5c8b67cc6c",
        "micro-student": "af3f3f02ac8ce61cbb7973003ecf48a71b72733b71aecf78444e353623657e8a4a7938e77ea503",
        "small-teacher": "af3f3f6ec282a7fb47567200ee5e6fce01f4160947cbb88cea83458e6130",
    }
    commits = {"small-student": "77459bf", "micro-student": "77459bf", "small-teacher": "528060b"}
    assert len(streams) == len(EARLIER)
    for name, data in streams.items():
        (tmp_path / "a.aeic").write_bytes(bytes.fromhex(data))
        for words in [], ["--model", name]:
            assert main(["decompress", str(tmp_path / "a.aeic"), "-o", str(tmp_path), *words]) == 2
            said = capsys.readouterr().err
            assert f"an earlier {name} (model {data[6:10]}) wrote it" in said
            assert f"commit {commits[name]} " in said
    assert not {model.fingerprint[:4] for model in models()} & EARLIER.keys()


def test_shipped_models_have_what_their_cards_say():
    for model in models():
        codec = Codec.from_pretrained(model.name)
        assert codec.fingerprint == model.fingerprint
        assert writer_of(bytes.fromhex(model.fingerprint)[:2]).name == model.name
        assert model.bytes == (model.folder / "model.safetensors").stat().st_size
        assert {"command", "data", "figures"} <= set(model.card)
    assert sum(model.bytes for model in models()) < 40e6


def test_export_writes_weights_with_a_card(tmp_path, capsys):
    """From a run's checkpoint, then from the weights themselves with the figures that were measured on them."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    save(small(), run / "checkpoints" / "last.ckpt")
    (run / "run.json").write_text(json.dumps({"command": "fit mine", "versions": {"aeic_lightning": "9"}, "git": None}))
    settings = {"objective": {"rate": 1.0, "mse": 8.0, "lpips": 1.0}}
    (run / "config.yaml").write_text(json.dumps({"model": {"class_path": "x.TeacherSystem", "init_args": settings}}))
    entries = tmp_path / "card.yaml"
    entries.write_text("data: 3 photographs\nnot good for: [text, faces]\n")
    first, second = tmp_path / "first", tmp_path / "mine"
    words = ["export", "--checkpoint", str(run / "checkpoints" / "last.ckpt"), "--weights", "-o", str(first)]
    assert main([*words, "--card", str(entries)]) == 0
    assert sorted(path.name for path in first.iterdir()) == ["README.md", "config.json", "model.safetensors"]

    results = tmp_path / "results.json"
    words = ["evaluate", "--checkpoint", str(first), "--images", "sample-photos", "--max-size", "128", "128"]
    assert main([*words, "--backbones", "lite0", "lite2", "--name", "mine", "--bpp", "2", "-o", str(results)]) == 0
    row = json.loads(results.read_text())["results"][0]
    parts = {name: row["metric_info"][name]["in_training"] for name in ("lpips_lite0", "dists_lite0", "lpips_lite2")}
    assert parts == {
        "lpips_lite0": "in the loss", "dists_lite0": "its network is in the loss", "lpips_lite2": "held out"
    }  # fmt: skip
    assert main(["export", "--checkpoint", str(first), "--weights", "-o", str(second), "--results", str(results)]) == 0
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    text = (second / "README.md").read_text()
    for words in (
        "# mine",
        "`fit mine`",
        "3 photographs",
        "- faces",
        f"mine at 2 bpp, 3 images: {row['metrics']['bpp']['mean']:.4f}",
    ):
        assert words in text, words
    assert "EfficientNet-Lite2 " in text
    assert "(held out)" in text


@pytest.mark.parametrize("text", ["[]", "a: 3", "a: {b: c}", "a: ["])
def test_a_card_that_is_none_is_refused(folder, tmp_path, text, capsys):
    entries = tmp_path / "card.yaml"
    entries.write_text(text)
    words = ["export", "--checkpoint", str(folder), "--weights", "-o", str(tmp_path / "out"), "--card", str(entries)]
    assert main(words) == 2
    assert "--card" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["small-student", "small-teacher"])
def test_quick_pictures_are_those_of_float32_but_for_single_levels(name, tmp_path, monkeypatch):
    """At least 45 dB from them, on photographs; Kodak's are at 57 to 59 dB (`docs/performance.md`)."""
    monkeypatch.setattr(torch_settings, "_bfloat16", True)
    quick, exact = Codec.from_pretrained(name), Codec.from_pretrained(name, float32=True)
    for photo, level in ((skimage.data.coffee(), 0.0), (skimage.data.chelsea(), 4.0)):
        data = quick.compress(photo[:192, :256], level=level)
        assert torch.equal(quick.bitstream.decode(data).y_hat, exact.bitstream.decode(data).y_hat)
        expected = reconstruct(exact.model, exact.bitstream.decode(data))
        picture, (batched,) = quick.decompress_array(data), quick.decompress_batch([data])
        assert np.array_equal(picture, np.asarray(batched))
        error = np.square(picture - expected.permute(1, 2, 0).numpy().astype(float)).mean()
        assert 0 < error < 255**2 / 10**4.5
        assert np.array_equal(exact.decompress_array(data), expected.permute(1, 2, 0).numpy())
    (tmp_path / "a.aeic").write_bytes(data)
    for words, same in (([], picture), (["--float32"], expected.permute(1, 2, 0).numpy())):
        assert main(["decompress", str(tmp_path / "a.aeic"), "-o", str(tmp_path), "--force", *words]) == 0
        assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), same)
    monkeypatch.setattr(torch_settings, "_bfloat16", False)  # where it is not quicker
    assert np.array_equal(quick.decompress_array(data), exact.decompress_array(data))


def test_a_codec_says_its_model_and_rates(codec):
    import aeic_lightning

    assert "Codec" in dir(aeic_lightning)
    size = sum(p.numel() for p in codec.model.parameters())
    rates = f"{codec.levels} rate levels" if codec.levels else "one rate"
    assert repr(codec) == f"Codec(AEIC, {size / 1e6:.1f} M parameters, {rates})"


def test_one_is_no_plural():
    assert [counted(number, "file") for number in (0, 1, 2)] == ["0 files", "1 file", "2 files"]


def test_a_card_of_a_run_whose_record_is_cut_off(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    save(small(), tmp_path / "checkpoints" / "last.ckpt")
    (tmp_path / "run.json").write_text('{"command": ')
    assert card(tmp_path / "checkpoints" / "last.ckpt", {"data": "mine"}, None, None, "x") == {"data": "mine"}
