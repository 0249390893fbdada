import json
import math
from importlib.metadata import version

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from tiny_system import SIZES, TinySystem, records
from torch.utils.data import DataLoader

from aeic_lightning.errors import UserError
from aeic_lightning.images import from_uint8
from aeic_lightning.metrics.features import DISTS, LPIPS
from aeic_lightning.metrics.patches import network_digest
from callbacks.distribution import PatchFID
from callbacks.quality import QualityMetrics, each_image_once


class Perfect(TinySystem):
    def validation_step(self, batch, batch_idx):
        return super().validation_step(batch, batch_idx) | {"x_hat": batch["image"]}


def read(run_folder, stage="val"):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((run_folder / f"metrics_{stage}.json").read_text(), parse_constant=refuse)


def test_figures_are_those_of_the_8_bit_images(system, trainer_of, val_loader, run_folder):
    trainer_of(QualityMetrics()).validate(system, val_loader, verbose=False)
    rows = {row["name"]: row for row in read(run_folder)["images"]}
    assert set(rows) == set(SIZES)
    lpips, dists = LPIPS("lite0"), DISTS("lite0")
    with torch.no_grad():
        for batch in val_loader:
            record = system.validation_step(batch, 0)
            arrays = [np.rint((record[key].numpy().clip(-1, 1) + 1) * 127.5) for key in ("x", "x_hat")]
            x8, x8_hat = (torch.from_numpy(array) for array in arrays)
            row = rows[batch["name"][0]]
            height, width = x8.shape[2:]
            assert (row["height"], row["width"]) == (height, width) == SIZES[row["name"]]
            assert row["psnr"] == pytest.approx(peak_signal_noise_ratio(*arrays, data_range=255), rel=1e-9)
            assert row["bpp_estimate"] == pytest.approx(0.02, rel=1e-6)
            assert row["bytes"] == height * width // 350
            assert row["bpp"] == 8 * row["bytes"] / (height * width)
            assert row["bits_estimate"] == pytest.approx(0.02 * height * width, rel=1e-6)
            for network in (lpips, dists):
                expected = network(from_uint8(x8_hat), from_uint8(x8)).item()
                assert row[network.name] == pytest.approx(expected, rel=1e-4)


def test_the_file_holds_what_was_logged(system, trainer_of, val_loader, run_folder):
    trainer = trainer_of(QualityMetrics())
    (logged,) = trainer.validate(system, val_loader, verbose=False)
    record = read(run_folder)
    assert {f"val/{name}" for name in record["metrics"]} == set(logged)
    for name, figure in record["metrics"].items():
        column = [row[name] for row in record["images"] if name in row]
        assert figure == {"mean": pytest.approx(np.mean(column), rel=1e-12), "images": len(column)}
        assert logged[f"val/{name}"] == pytest.approx(figure["mean"], rel=1e-6)
    assert set(record["metric_info"]) == set(record["metrics"])
    assert record["metric_info"]["lpips_lite0"]["backbone"] == "lite0"
    assert record["metric_info"]["lpips_lite0"]["weights"] == network_digest(LPIPS("lite0").backbone)
    assert record["versions"] == {name: version(name) for name in ("torch", "torchmetrics", "lpips", "timm")}
    assert not [path for path in run_folder.iterdir() if path.name.startswith(".")]


def test_ms_ssim_is_left_out_of_small_images(system, trainer_of, val_loader, run_folder):
    trainer_of(QualityMetrics(lpips=[], dists=[])).validate(system, val_loader, verbose=False)
    record = read(run_folder)
    assert [row["name"] for row in record["images"] if "ms_ssim" in row] == ["wide"]
    assert record["metrics"]["ms_ssim"]["images"] == 1

    loader = DataLoader(records({"small": SIZES["small"]}), batch_size=1)
    trainer = trainer_of(QualityMetrics(lpips=[], dists=[]))
    (logged,) = trainer.validate(system, loader, verbose=False)
    assert set(logged) == {"val/psnr", "val/bpp", "val/bpp_estimate"}


def test_switches(system, trainer_of, val_loader):
    (logged,) = trainer_of(QualityMetrics(ms_ssim=False, dists=[])).validate(system, val_loader, verbose=False)
    assert set(logged) == {"val/psnr", "val/bpp", "val/bpp_estimate", "val/lpips_lite0"}


def test_without_streams_there_is_no_bpp(trainer_of, val_loader, run_folder):
    class WithoutStreams(TinySystem):
        def validation_step(self, batch, batch_idx):
            return super().validation_step(batch, batch_idx) | {"bytes": None}

    trainer_of(QualityMetrics(lpips=[], dists=[])).validate(WithoutStreams(), val_loader, verbose=False)
    record = read(run_folder)
    assert "bpp_estimate" in record["metrics"]
    assert "bpp" not in record["metrics"]
    assert all("bytes" not in row for row in record["images"])


def test_a_perfect_reconstruction(trainer_of, val_loader, run_folder):
    trainer_of(QualityMetrics()).validate(Perfect(), val_loader, verbose=False)
    record = read(run_folder)
    assert record["metrics"]["psnr"]["mean"] is None  # infinite, which JSON cannot say
    assert record["metrics"]["ms_ssim"]["mean"] == pytest.approx(1, abs=1e-6)
    assert record["metrics"]["lpips_lite0"]["mean"] == 0
    assert record["metrics"]["dists_lite0"]["mean"] == pytest.approx(0, abs=1e-5)


def test_each_validation_and_test_is_written_with_its_step(system, trainer_of, train_loader, val_loader, run_folder):
    trainer = trainer_of(QualityMetrics(lpips=[], dists=[]))
    trainer.fit(system, train_loader, val_loader)
    assert read(run_folder)["step"] == 6
    (logged,) = trainer.test(system, val_loader, verbose=False)
    assert read(run_folder, "test")["metrics"]["psnr"]["mean"] == pytest.approx(logged["test/psnr"], rel=1e-6)


def test_the_sanity_check_is_passed_over(system, trainer_of, train_loader, val_loader, run_folder):
    trainer = trainer_of(QualityMetrics(lpips=[], dists=[]), limit_train_batches=0, num_sanity_val_steps=2)
    trainer.fit(system, train_loader, val_loader)
    assert not (run_folder / "metrics_val.json").exists()


def test_a_name_given_twice(system, trainer_of):
    loader = DataLoader(2 * records({"small": (96, 96)}), batch_size=1)
    with pytest.raises(UserError, match="two images are called 'small'"):
        trainer_of(QualityMetrics(lpips=[], dists=[])).validate(system, loader, verbose=False)


def test_two_processes_measure_what_one_does(system, trainer_of, val_loader, run_folder):
    """Three images on two processes: the sampler repeats one, which must not count twice."""
    records = []
    for options in ({}, {"strategy": "ddp_fork", "devices": 2}):
        callbacks = [QualityMetrics(), PatchFID(patch_size=32, min_patches=2, min_images=1)]
        trainer_of(*callbacks, **options).validate(system, val_loader, verbose=False)
        records.append(read(run_folder))
        (run_folder / "metrics_val.json").unlink()
    alone, together = records
    assert [row["name"] for row in together["images"]] == sorted(SIZES)
    for row, other in zip(together["images"], alone["images"], strict=True):
        assert row.pop("name") == other.pop("name")
        assert row == pytest.approx(other, rel=1e-5)
    for kind in ("metrics", "set_metrics"):
        assert set(together[kind]) == set(alone[kind])
        for name, figure in together[kind].items():
            assert figure == pytest.approx(alone[kind][name], rel=1e-4)


def test_rows_of_several_processes_count_each_image_once():
    a, b, c = ({"name": name, "crc32": i, "psnr": 20.0 + i} for i, name in enumerate("abc"))
    assert each_image_once([[c, a], [b, dict(a)]]) == [a, b, c]
    with pytest.raises(UserError, match="'a'"):
        each_image_once([[a], [a | {"crc32": 9}]])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda record: record.pop("bits_estimate"), "missing .'bits_estimate'"),
        (lambda record: record.update(x_hat=record["x_hat"][..., :-1]), "crop x_hat"),
        (lambda record: record.update(bytes=[5, 6]), "2 file sizes"),
        (lambda record: record.update(x_hat=record["x_hat"] * math.nan), "wide: .*NaN"),
    ],
)
def test_a_step_that_breaks_the_contract(change, complaint, trainer_of, val_loader):
    class Broken(TinySystem):
        def validation_step(self, batch, batch_idx):
            record = super().validation_step(batch, batch_idx)
            change(record)
            return record

    with pytest.raises(UserError, match=complaint):
        trainer_of(QualityMetrics(lpips=[], dists=[])).validate(Broken(), val_loader, verbose=False)


def test_several_sets_are_refused(trainer_of, val_loader):
    class OfSeveralSets(TinySystem):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            return super().validation_step(batch, batch_idx)

    with pytest.raises(UserError, match="one data set"):
        trainer_of(QualityMetrics(lpips=[], dists=[])).validate(
            OfSeveralSets(), [val_loader, val_loader], verbose=False
        )
