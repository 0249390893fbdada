import json

import numpy as np
import pytest
import torch
from tiny_system import SIZES, TinySystem, records
from torch.utils.data import DataLoader

from aeic_lightning.errors import UserError
from aeic_lightning.images import from_uint8, to_uint8
from aeic_lightning.metrics.patches import distances, network_digest, two_grids
from aeic_lightning.models.backbones import Lite0
from callbacks.distribution import PatchFID
from callbacks.quality import QualityMetrics

# Patches of 32 pixels in the validation images: both grids of (176, 208), (150, 100) and (96, 96).
PATCHES_32 = (5 * 6 + 5 * 6) + (4 * 3 + 4 * 2) + (3 * 3 + 2 * 2)


def test_logged_figures_are_those_of_the_features(system, trainer_of, val_loader, run_folder):
    callback = PatchFID(patch_size=32, min_patches=2, min_images=3, kid_subset_size=50)
    (logged,) = trainer_of(callback, QualityMetrics(lpips=[], dists=[])).validate(system, val_loader, verbose=False)
    network, sides = Lite0(), ([], [])
    with torch.no_grad():
        for batch in sorted(val_loader, key=lambda batch: batch["name"]):
            record = system.validation_step(batch, 0)
            for side, key in zip(sides, ("x", "x_hat"), strict=True):
                side.append(network.embedding(from_uint8(two_grids(to_uint8(record[key])[0], 32))))
    real, fake = (torch.cat(side) for side in sides)
    fid, kid, kid_std = distances(real, fake, 50)
    assert logged["val/fid_patches"] == len(real) == PATCHES_32
    assert logged["val/fid_lite0"] == pytest.approx(fid, rel=1e-3)
    assert logged["val/kid_lite0"] == pytest.approx(kid, rel=1e-3)
    in_file = json.loads((run_folder / "metrics_val.json").read_text())["set_metrics"]
    assert in_file == {
        "fid_lite0": {"value": pytest.approx(logged["val/fid_lite0"], rel=1e-6), "patches": PATCHES_32},
        "kid_lite0": {
            "value": pytest.approx(logged["val/kid_lite0"], rel=1e-6),
            "std": pytest.approx(kid_std, rel=1e-3),
            "patches": PATCHES_32,
        },
    }


def test_originals_as_reconstructions(trainer_of, val_loader):
    class Perfect(TinySystem):
        def validation_step(self, batch, batch_idx):
            return super().validation_step(batch, batch_idx) | {"x_hat": batch["image"]}

    trainer = trainer_of(PatchFID(patch_size=32, min_patches=2, min_images=3))
    (logged,) = trainer.validate(Perfect(), val_loader, verbose=False)
    assert logged["val/fid_lite0"] == pytest.approx(0, abs=1e-3)


def test_too_few_patches_are_said_once_and_nothing_is_logged(system, trainer_of, train_loader, val_loader, events):
    trainer = trainer_of(PatchFID(patch_size=32, min_patches=PATCHES_32 + 1, min_images=3))
    with pytest.warns(UserWarning, match=f"{PATCHES_32} patches .* below min_patches") as caught:
        trainer.fit(system, train_loader, val_loader)
    assert len([w for w in caught if "min_patches" in str(w.message)]) == 1
    tags = events().Tags()["scalars"]
    assert "val/fid_patches" in tags
    assert not {"val/fid_lite0", "val/kid_lite0"} & set(tags)


def test_many_patches_of_few_images_are_refused(system, trainer_of, val_loader):
    trainer = trainer_of(PatchFID(patch_size=32, min_patches=2))
    with pytest.warns(UserWarning, match="3 images with patches of 32 pixels, below min_images=50"):
        (logged,) = trainer.validate(system, val_loader, verbose=False)
    assert logged["val/fid_patches"] == PATCHES_32
    assert "val/fid_lite0" not in logged


def test_images_smaller_than_a_patch_give_none(system, trainer_of):
    loader = DataLoader(records({"small": SIZES["small"]}), batch_size=1)
    trainer = trainer_of(PatchFID(patch_size=128))
    with pytest.warns(UserWarning, match="0 images with patches of 128 pixels, below min_images=50"):
        (logged,) = trainer.validate(system, loader, verbose=False)
    assert logged == {"val/fid_patches": 0}


def counting(callback, counts):
    """Counts the patches that go through the network."""
    features = callback.patches.features

    def counted(patches):
        counts.append(len(patches))
        return features(patches)

    callback.patches.features = counted


def test_originals_run_once_and_every_n_is_kept(system, trainer_of, train_loader, val_loader, events):
    callback, counts = PatchFID(patch_size=32, min_patches=2, min_images=3, every_n_validations=2), []
    trainer = trainer_of(callback)
    callback.setup(trainer, system, "fit")
    counting(callback, counts)
    trainer.fit(system, train_loader, val_loader)  # three validations, of which the first and third are measured
    assert sum(counts) == (2 + 1) * PATCHES_32
    assert len(events().Scalars("val/fid_lite0")) == 2
    counts.clear()
    trainer.test(system, val_loader, verbose=False)
    assert sum(counts) == PATCHES_32


def test_another_run_reads_the_cache_file(system, trainer_of, val_loader, tmp_path):
    results = []
    for _ in range(2):
        callback, counts = PatchFID(patch_size=32, min_patches=2, min_images=3, cache_dir=tmp_path / "cache"), []
        trainer = trainer_of(callback)
        callback.setup(trainer, system, "validate")
        counting(callback, counts)
        results += trainer.validate(system, val_loader, verbose=False)
    assert sum(counts) == PATCHES_32  # the reconstructions alone
    assert results[0] == pytest.approx(results[1])
    (file,) = (tmp_path / "cache").iterdir()
    assert file.name == f"patch_features_lite0_32_{network_digest(Lite0())}.npz"
    with np.load(file) as saved:
        assert sum(len(saved[key]) for key in saved) == PATCHES_32
        assert len(saved) == len(SIZES)


@pytest.mark.parametrize(
    "options",
    [{"patch_size": 33}, {"patch_size": 16}, {"min_patches": 1}, {"min_images": 0}, {"every_n_validations": 0}],
)
def test_options_out_of_range(options):
    with pytest.raises(UserError, match="FID"):
        PatchFID(**options)


def test_inception_without_its_weights(system, trainer_of, val_loader, tmp_path):
    trainer = trainer_of(PatchFID(backbone="inception", weights=str(tmp_path)))
    with pytest.raises(UserError, match="weights-inception"):
        trainer.validate(system, val_loader, verbose=False)
