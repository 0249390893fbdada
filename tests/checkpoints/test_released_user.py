"""A user's path from released files and a diffusers folder: import, pictures, and a student of one's own."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from skimage import data
from small_release import as_released, save_base, small_sizes, small_unet, small_vae

from aeic_lightning.checkpoints import released
from aeic_lightning.checkpoints.checkpoint import from_dict, load_model
from aeic_lightning.cli import main
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import DecoderConfig, PretrainedConfig
from aeic_lightning.models.decoder.tiling import tile_starts

PAPER = Path(__file__).parents[2] / "experiments" / "paper"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Base, released ME and SE, photographs."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("user")
    turbo, half = save_base(folder, small_unet([8, 8, 16, 16], [1, 1, 2, 2]), small_vae())
    for name, (codec, decoder) in candidates(turbo, half).items():
        model = AEIC(codec, decoder)
        model.decoder.load_base()
        for key, p in model.decoder.denoiser.named_parameters():
            if ".lora_B." in key:
                torch.nn.init.normal_(p, std=0.05)
        torch.save(as_released(model), folder / f"{name}.pkl")
    (folder / "train").mkdir()
    Image.fromarray(data.cat()).save(folder / "train" / "cat.png")
    (folder / "photos").mkdir()
    Image.fromarray(data.astronaut()).resize((250, 190)).save(folder / "photos" / "astronaut.png")
    Image.fromarray(data.coffee()).resize((130, 60)).save(folder / "photos" / "coffee.png")
    return folder


def candidates(turbo: str | Path, half: str | Path) -> dict[str, tuple[CodecConfig, DecoderConfig]]:
    """The released models with small widths."""
    sizes = small_sizes(Path(turbo), Path(half))["model"]["init_args"]
    decoder = from_dict(DecoderConfig, sizes["decoder"])
    decoder = replace(decoder, pretrained=PretrainedConfig(unet=str(turbo), vae=str(half)))
    codecs = {
        "AEIC-ME": from_dict(CodecConfig, sizes["codec"] | {"widths": [8, 8, 16, 16, 32], "depths": [2] * 5}),
        "AEIC-SE": from_dict(CodecConfig, sizes["codec"] | {"widths": [8, 8, 8, 16, 16], "depths": [1] * 5}),
    }
    return {
        "AEIC-ME": (replace(codecs["AEIC-ME"], context_depth=4), decoder),
        "AEIC-SE": (replace(codecs["AEIC-SE"], context_depth=3), decoder),
    }


@pytest.fixture
def imported(folder, monkeypatch) -> dict[str, Path]:
    """`import-released` of both; the command knows the two full sizes alone, here the small ones."""
    monkeypatch.setattr(released.import_released, "__defaults__", (None, candidates("", "")))
    monkeypatch.chdir(folder)
    for name in ("AEIC-ME", "AEIC-SE"):
        if not Path(f"{name}.ckpt").exists():
            words = ["import-released", f"{name}.pkl", "-o", f"{name}.ckpt", "--unet", "turbo", "--vae", "half.ckpt"]
            assert main(words) == 0
    return {name: folder / f"{name}.ckpt" for name in ("AEIC-ME", "AEIC-SE")}


@pytest.mark.parametrize("name", ["AEIC-ME", "AEIC-SE"])
def test_pictures_from_bytes(folder, imported, name, tmp_path, monkeypatch, capfd):
    """compress, decompress: the picture is the model's own, in tiles where it is larger than one."""
    monkeypatch.chdir(tmp_path)  # another folder than that of the import
    checkpoint = str(imported[name])
    assert main(["compress", str(folder / "photos"), "--checkpoint", checkpoint, "-o", "streams"]) == 0
    assert main(["decompress", "streams", "--checkpoint", checkpoint, "-o", "out"]) == 0

    model = load_model(checkpoint)
    tiles = []
    model.decoder.denoiser.register_forward_hook(lambda module, args, out: tiles.append(args[0].shape[2:]))
    for photo, (rows, columns) in (("astronaut", (24, 32)), ("coffee", (8, 24))):
        tiles.clear()
        x = torch.from_numpy(np.array(Image.open(folder / "photos" / f"{photo}.png"))).permute(2, 0, 1)[None]
        with torch.no_grad():
            x_hat = model(x / 127.5 - 1).x_hat
        # The stream's arithmetic is exact and its context rounded, so that single latents may differ from this pass.
        decoded = torch.from_numpy(np.array(Image.open(f"out/{photo}.png"))).permute(2, 0, 1)[None]
        assert decoded.shape == x.shape
        assert ((x_hat + 1) * 127.5 - decoded).abs().mean() < 4
        whole = rows * columns <= 16**2
        count = 1 if whole else len(tile_starts(rows, 16, 8)) * len(tile_starts(columns, 16, 8))
        assert len(tiles) == count
        assert all(height * width <= 16**2 for height, width in tiles)


def test_evaluate_measures_the_files_and_pictures(folder, imported, tmp_path):
    """`evaluate` on an imported checkpoint: the bytes that `compress` writes, the PSNR of what `decompress` gives."""
    checkpoint, photos, out = str(imported["AEIC-SE"]), str(folder / "photos"), tmp_path / "se.json"
    figures = ["--backbones", "lite0", "--patch-size", "64", "-o", str(out)]
    assert main(["evaluate", "--checkpoint", checkpoint, "--images", photos, *figures]) == 0
    assert main(["compress", photos, "--checkpoint", checkpoint, "-o", str(tmp_path / "streams")]) == 0
    assert main(["decompress", str(tmp_path / "streams"), "--checkpoint", checkpoint, "-o", str(tmp_path / "out")]) == 0
    (result,) = json.loads(out.read_text())["results"]
    assert [row["name"] for row in result["images"]] == ["astronaut", "coffee"]
    for row in result["images"]:
        name = row["name"]
        assert row["bytes"] == (tmp_path / "streams" / f"{name}.aeic").stat().st_size
        paths = folder / "photos" / f"{name}.png", tmp_path / "out" / f"{name}.png"
        x, x_hat = (np.array(Image.open(path), np.float64) for path in paths)
        assert row["psnr"] == pytest.approx(10 * np.log10(255**2 / np.mean((x - x_hat) ** 2)), abs=1e-3)


def test_the_sender_needs_no_base(folder, imported, tmp_path, capfd):
    """Where only the checkpoint is, `compress` writes the same bytes, and `decompress` says what it lacks."""
    elsewhere = tmp_path / "sender.ckpt"
    checkpoint = torch.load(imported["AEIC-SE"], weights_only=True)
    checkpoint["model_config"]["decoder"]["pretrained"] |= {"unet": "/none/turbo", "vae": "/none/half.ckpt"}
    torch.save(checkpoint, elsewhere)
    photo = str(folder / "photos" / "coffee.png")
    for path, out in ((imported["AEIC-SE"], "one"), (elsewhere, "other")):
        assert main(["compress", photo, "--checkpoint", str(path), "-o", str(tmp_path / out)]) == 0
    assert (tmp_path / "one" / "coffee.aeic").read_bytes() == (tmp_path / "other" / "coffee.aeic").read_bytes()
    capfd.readouterr()
    assert main(["decompress", str(tmp_path / "one"), "--checkpoint", str(elsewhere), "-o", str(tmp_path)]) == 2
    said = capfd.readouterr().err
    assert "no U-Net (a diffusers folder) at /none/turbo" in said
    assert "Traceback" not in said


def test_another_base_is_refused(folder, imported, tmp_path, monkeypatch, capfd):
    """AEIC_WEIGHTS leads to a base of the same sizes that is not the one of the import."""
    checkpoint = torch.load(imported["AEIC-SE"], weights_only=True)
    checkpoint["model_config"]["decoder"]["pretrained"] |= {"unet": "owner/turbo", "vae": "owner/half.ckpt"}
    torch.save(checkpoint, tmp_path / "se.ckpt")
    stream = ["compress", str(folder / "photos" / "coffee.png"), "--checkpoint", str(tmp_path / "se.ckpt")]
    assert main([*stream, "-o", str(tmp_path)]) == 0
    decode = ["decompress", str(tmp_path / "coffee.aeic"), "--checkpoint", str(tmp_path / "se.ckpt"), "-o"]
    weights = tmp_path / "weights"
    save_base(weights, small_unet([8, 8, 16, 16], [1, 1, 2, 2]), small_vae())
    monkeypatch.setenv("AEIC_WEIGHTS", str(weights))
    assert main([*decode, str(tmp_path / "wrong")]) == 2
    assert "was trained on a unet with digest" in capfd.readouterr().err
    assert not (tmp_path / "wrong").exists()
    shutil.rmtree(weights)
    monkeypatch.setenv("AEIC_WEIGHTS", str(folder))
    assert main([*decode, str(tmp_path / "right")]) == 0


def test_the_imported_me_teaches_a_student(folder, imported, tmp_path, capfd):
    """SE stage 1 with the imported ME as teacher, then from the imported SE; the losses on Lite0 for time's sake."""
    small = small_sizes(folder / "turbo", folder / "half.ckpt")
    small["model"]["init_args"]["codec"]["widths"] = [8, 8, 8, 16, 16]
    small["model"]["init_args"]["objective"] = {"lpips": {"backbone": "lite0"}, "semantic": {"backbone": "lite0"}}
    small["trainer"]["callbacks"] = [
        {"class_path": "callbacks.checkpoint.LastCheckpoint", "init_args": {"every_n_steps": 1}},
        {"class_path": "callbacks.quality.QualityMetrics"},
    ]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    words = ["--config", str(PAPER / "se_stage1.yaml"), "--config", str(tmp_path / "small.yaml"),
             f"--vars.root={tmp_path}", f"--vars.teacher={imported['AEIC-ME']}", "--vars.steps=1", "--vars.val_every=1",
             f"--vars.data={folder / 'train'}", f"--vars.val={folder / 'photos'}",
             f"--model.init_args.init_from={imported['AEIC-SE']}"]  # fmt: skip
    assert main(["fit", *words, "--dry-run"]) == 0
    assert main(["fit", *words]) == 0
    last = tmp_path / "se_stage1" / "checkpoints" / "last.ckpt"
    trained, before = (load_model(path).state_dict() for path in (last, imported["AEIC-SE"]))
    assert trained.keys() == before.keys()
    moved = [name for name, tensor in trained.items() if not torch.equal(tensor, before[name])]
    assert any("lora_A" in name for name in moved)
    assert any("g_a" in name for name in moved)
    assert len(json.loads((tmp_path / "se_stage1" / "metrics_val.json").read_text())["images"]) == 2
