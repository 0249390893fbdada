import csv
import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from tiny_system import TinySystem

from aeic_lightning.errors import UserError
from callbacks.curves import RateDistortionPicture, TapCurves
from callbacks.quality import QualityMetrics


def test_the_path_is_that_of_the_logged_means(system, trainer_of, train_loader, val_loader, run_folder, events):
    curve = RateDistortionPicture(["psnr", "dists_lite0"])
    quality = QualityMetrics(lpips=[])
    # Either order among the callbacks will do.
    trainer_of(curve, quality).fit(system, train_loader, val_loader)
    assert [point["step"] for point in curve.path] == [2, 4, 6]
    record = events()
    for name in ("bpp", "bpp_estimate", "psnr", "dists_lite0"):
        logged = [event.value for event in record.Scalars(f"val/{name}")]
        assert [point[name] for point in curve.path] == pytest.approx(logged, rel=1e-6)
    assert [image.step for image in record.Images("plots/rate_distortion")] == [2, 4, 6]

    panels = curve._draw().axes
    for axes, name in zip(panels, ("psnr", "dists_lite0"), strict=True):
        points = axes.collections[0].get_offsets().tolist()
        assert points == [[row["bpp"], row[name]] for row in quality.rows]
        assert axes.lines[0].get_xydata().tolist() == [[p["bpp"], p[name]] for p in curve.path]
        assert axes.get_xlabel() == "bpp"
    with Image.open(run_folder / "rate_distortion.png") as picture:
        assert picture.size == (500, 760)


def test_a_path_without_streams_is_of_estimates(system, trainer_of, val_loader):
    curve = RateDistortionPicture(["psnr"])
    curve.load_state_dict({"path": [{"step": 1, "bpp_estimate": 0.5, "psnr": 10.0}]})  # before streams were written
    trainer_of(curve, QualityMetrics(lpips=[], dists=[])).validate(system, val_loader, verbose=False)
    (axes,) = curve._draw().axes
    assert axes.get_xlabel() == "bpp_estimate"
    assert axes.lines[0].get_xdata().tolist() == [0.5, curve.path[1]["bpp_estimate"]]


def test_the_picture_needs_the_figures(system, trainer_of, val_loader):
    with pytest.raises(UserError, match="one QualityMetrics"):
        trainer_of(RateDistortionPicture()).validate(system, val_loader, verbose=False)
    with pytest.raises(UserError, match=r"no metric 'lpips_alex'.*'psnr'"):
        trainer_of(QualityMetrics(), RateDistortionPicture(["lpips_alex"])).validate(system, val_loader, verbose=False)


def test_taps_are_the_logged_losses(system, trainer_of, train_loader, val_loader, run_folder, events):
    taps = TapCurves(every_n_steps=2)
    trainer_of(taps).fit(system, train_loader, val_loader)
    with (run_folder / "taps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [2, 4, 6]
    record = events()
    for tap in ("encoder/y", "encoder/z", "decoder/l_0"):
        # Logged before the step is counted: the loss of step n is the n-th event.
        logged = [event.value for event in record.Scalars(f"train/distill/{tap}")]
        assert len(logged) == 6
        assert [float(row[tap]) for row in rows] == logged[1::2]
    assert [image.step for image in record.Images("plots/taps")][-1] == 6

    encoder, decoder = taps._draw(["encoder/y", "encoder/z", "decoder/l_0"]).axes
    assert (encoder.get_title(), decoder.get_title(), encoder.get_yscale()) == ("encoder", "decoder", "log")
    assert [line.get_label() for line in encoder.lines] == ["y", "z"]
    assert decoder.lines[0].get_xydata().tolist() == [[p["step"], p["decoder/l_0"]] for p in taps.points]


def test_a_tap_that_comes_late_has_a_gap_before(system, trainer_of, run_folder):
    taps = TapCurves()
    taps.points = [{"step": 1, "encoder/y": 2.0}, {"step": 2, "encoder/y": 1.0, "decoder/l_0": 3.0}]
    taps.folder = run_folder
    taps._publish(trainer_of(), system)
    assert (run_folder / "taps.csv").read_text() == "step,encoder/y,decoder/l_0\n1,2.0,\n2,1.0,3.0\n"
    line = taps._draw(["encoder/y", "decoder/l_0"]).axes[1].lines[0].get_ydata()
    assert math.isnan(line[0])
    assert line[1] == 3


def test_no_distillation_no_picture(trainer_of, train_loader, val_loader, run_folder):
    class Teacher(TinySystem):
        def log(self, name, *args, **kwargs):
            if "distill" not in name:
                super().log(name, *args, **kwargs)

    trainer_of(TapCurves(every_n_steps=1)).fit(Teacher(), train_loader, val_loader)
    assert not list(run_folder.glob("taps*"))


def test_an_accumulated_batch_adds_no_point(trainer_of, train_loader, val_loader):
    class Accumulating(TinySystem):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.generator_step -= batch_idx % 2
            return loss

    taps = TapCurves(every_n_steps=1)
    trainer_of(taps).fit(Accumulating(), train_loader, val_loader)
    assert [point["step"] for point in taps.points] == [1, 2, 3]


def test_curves_survive_a_resume(system, trainer_of, train_loader, val_loader, tmp_path):
    def callbacks():
        return QualityMetrics(lpips=[], dists=[]), RateDistortionPicture(["psnr"]), TapCurves(every_n_steps=1)

    first = callbacks()
    trainer = trainer_of(*first, max_epochs=2)
    trainer.fit(system, train_loader, val_loader)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    torch.load(tmp_path / "last.ckpt", weights_only=True)  # nothing but tensors and plain values

    second = callbacks()
    resumed = TinySystem()
    resumed.generator_step = system.generator_step
    trainer_of(*second).fit(resumed, train_loader, val_loader, ckpt_path=tmp_path / "last.ckpt")
    assert [point["step"] for point in second[1].path] == [2, 4, 6]
    assert second[1].path[:2] == first[1].path
    assert [point["step"] for point in second[2].points] == [1, 2, 3, 4, 5, 6]
    assert second[2].points[:4] == first[2].points


def test_checkpoints_carry_no_metric_network(system, trainer_of, train_loader, val_loader, tmp_path):
    saver = ModelCheckpoint(tmp_path / "checkpoints", monitor="val/dists_lite0")
    trainer = trainer_of(saver, QualityMetrics(), enable_checkpointing=True)
    trainer.fit(system, train_loader, val_loader)
    assert saver.best_model_score.item() == pytest.approx(trainer.callback_metrics["val/dists_lite0"].item(), abs=0.1)
    state = torch.load(saver.best_model_path, weights_only=False)["state_dict"]
    assert set(state) == {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"}
