from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from tiny_system import SIZES, TinySystem

from aeic_lightning.errors import UserError
from aeic_lightning.images import to_uint8
from callbacks import pictures
from callbacks.base import EvaluatedImage
from callbacks.pictures import CAPTION_HEIGHT, ReconstructionGrid


def test_originals_stand_left_of_reconstructions(system, trainer_of, val_loader, run_folder, events):
    trainer_of(ReconstructionGrid(max_images=2)).validate(system, val_loader, verbose=False)
    picture = np.asarray(Image.open(run_folder / "reconstructions" / "step_000000.png"))
    assert len(picture) == sum(SIZES[name][0] + CAPTION_HEIGHT for name in ("wide", "tall"))
    top = 0
    for batch, name in zip(val_loader, ("wide", "tall"), strict=False):
        record = system.validation_step(batch, 0)
        height, width = SIZES[name]
        top += CAPTION_HEIGHT
        x, x_hat = (to_uint8(record[key])[0].permute(1, 2, 0).numpy() for key in ("x", "x_hat"))
        band = picture[top : top + height]
        assert np.array_equal(band[:, :width], x)
        # A caption wider than its image pads it, so the reconstruction is looked for.
        starts = [s for s in range(width, band.shape[1] - width + 1) if np.array_equal(band[:, s : s + width], x_hat)]
        assert len(starts) == 1
        top += height
    (image,) = events().Images("pictures/val")
    assert (image.height, image.width, image.step) == (*picture.shape[:2], 0)


def test_the_caption_gives_quality_and_rate(monkeypatch):
    captions = []
    draw = pictures._captioned
    monkeypatch.setattr(pictures, "_captioned", lambda *args: captions.append(args[2]) or draw(*args))
    x = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    x_hat = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    pictures._row(EvaluatedImage("beach", x, x_hat, bits=100.0), max_side=25)
    pictures._row(EvaluatedImage("beach", x, x_hat, bits=100.0, bytes=15), max_side=25)
    quality = peak_signal_noise_ratio(x.numpy(), x_hat.numpy(), data_range=255)
    assert captions[0] == captions[2] == "beach  (shown at 50%)"
    assert captions[1::2] == [f"PSNR {quality:.2f} dB  {rate}" for rate in ("0.0500 bpp estimated", "0.0600 bpp")]


def test_a_large_image_is_shrunk_for_the_picture_alone(system, trainer_of, val_loader, run_folder):
    trainer_of(ReconstructionGrid(max_images=1, max_side=52, save_images=True)).validate(
        system, val_loader, verbose=False
    )
    with Image.open(run_folder / "reconstructions" / "step_000000.png") as picture:
        assert picture.height == 176 * 52 // 208 + CAPTION_HEIGHT
    with Image.open(run_folder / "reconstructions" / "wide.png") as saved:
        assert saved.size == (208, 176)


def test_saved_images_are_the_last_reconstructions(system, trainer_of, train_loader, val_loader, run_folder):
    trainer_of(ReconstructionGrid(save_images=True)).fit(system, train_loader, val_loader)
    with torch.no_grad():
        for batch in val_loader:
            expected = to_uint8(system.validation_step(batch, 0)["x_hat"])[0].permute(1, 2, 0).numpy()
            saved = Image.open(run_folder / "reconstructions" / f"{batch['name'][0]}.png")
            assert np.array_equal(np.asarray(saved), expected)


def test_every_second_validation_and_each_test(system, trainer_of, train_loader, val_loader, run_folder, events):
    trainer = trainer_of(ReconstructionGrid(every_n_validations=2))
    trainer.fit(system, train_loader, val_loader)
    trainer.test(system, val_loader, verbose=False)
    files = sorted(path.name for path in (run_folder / "reconstructions").iterdir())
    assert files == ["step_000002.png", "step_000006.png", "test_step_000006.png"]
    assert [image.step for image in events().Images("pictures/val")] == [2, 6]


def test_predictions_are_the_8_bit_reconstructions(trainer_of, val_loader, tmp_path):
    class Nested(TinySystem):
        def predict_step(self, batch, batch_idx):
            out = self.validation_step(batch, batch_idx)
            self.seen = out["x_hat"], f"folder/{out['name'][0]}"
            return out | {"name": [f"folder/{name}" for name in out["name"]]}

    system = Nested()
    trainer = trainer_of(ReconstructionGrid())
    trainer.predict(system, val_loader)
    x_hat, name = system.seen
    files = list(Path(trainer.log_dir or trainer.default_root_dir).rglob("predictions/*.png"))
    assert len(files) == len(val_loader)
    (last,) = [file for file in files if file.stem == name.replace("/", "__")]
    expected = ((x_hat[-1].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(Image.open(last)), expected)


def test_names_that_lead_out_of_the_folder_are_refused(trainer_of, val_loader):
    class Nested(TinySystem):
        def validation_step(self, batch, batch_idx):
            return super().validation_step(batch, batch_idx) | {"name": ["../escape"]}

    with pytest.raises(UserError, match="cannot name a file"):
        trainer_of(ReconstructionGrid(save_images=True)).validate(Nested(), val_loader, verbose=False)


def test_options_out_of_range():
    with pytest.raises(UserError, match="start at 1"):
        ReconstructionGrid(max_images=0)
