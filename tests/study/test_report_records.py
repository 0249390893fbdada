"""What the page takes from run folders: settings, losses of taps, pictures."""

import random

from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from aeic_lightning.study.claims import Claim
from aeic_lightning.study.report.page import flatten
from aeic_lightning.study.report.sections import Pictures, _telling, tap_losses
from aeic_lightning.study.results import Result


def test_pairs_and_callbacks_are_named():
    pairs = [{"tap": "y", "side": "encoder", "weight": 1.0, "teacher_tap": None},
             {"tap": "h_1", "side": "decoder", "weight": 0.5, "teacher_tap": "h_2"}]  # fmt: skip
    flat = flatten(
        {"pairs": pairs, "callbacks": [{"class_path": "a.B", "init_args": {"n": 3}}], "none": None, "l": [1, 2]}
    )
    assert flat["pairs"] == "encoder: y; decoder: h_1 to h_2 x 0.5"
    assert flat["callbacks.B.init_args.n"] == "3"
    assert (flat["none"], flat["l"]) == ("null", "[1, 2]")


def test_tap_losses_of_a_resumed_run_are_the_later_ones(tmp_path):
    for part, (start, stop) in enumerate([(1, 31), (21, 41)]):
        with SummaryWriter(tmp_path, filename_suffix=f".{part}") as writer:
            for step in range(start, stop):
                writer.add_scalar("train/distill/encoder/y", step + 100.0 * part, step, walltime=1000 * part + step)
    losses = tap_losses(tmp_path)
    assert list(losses) == ["encoder"]
    steps, values = losses["encoder"]["y"]
    assert steps == list(range(1, 41))
    assert values[19:21] == [20.0, 121.0]


def noise(path, size):
    Image.frombytes("RGB", (size, size), random.Random(str(path)).randbytes(3 * size * size)).save(path)


def test_pictures_are_recompressed_only_where_they_must(tmp_path):
    for i in range(4):
        noise(tmp_path / f"{i}.png", 128)
    whole = Pictures(10_000_000)
    assert [whole.add(tmp_path / f"{i}.png") for i in (0, 1, 0)] == [0, 1, 0], "equal pictures are held once"
    assert all(uri.startswith("data:image/png") for uri in whole.embed())
    tight = Pictures(120_000)
    for i in range(4):
        tight.add(tmp_path / f"{i}.png")
    uris = tight.embed()
    assert sum(map(len, uris)) < 120_200
    assert all(uri.startswith("data:image/jpeg") for uri in uris)
    assert "recompressed for this page as JPEG" in tight.described
    impossible = Pictures(100)
    impossible.add(tmp_path / "0.png")
    assert impossible.embed() is None


def test_the_slider_opens_on_the_teacher_and_the_best_student_at_low_rates():
    claim = Claim("It", {"arm": "enc"}, {"arm": "none"}, "lpips_lite2")

    def result(arm: str, bpp: float, lpips: float) -> Result:
        return Result(arm, "run", {"arm": arm}, {}, images=[{"name": "a", "bpp": bpp, "lpips_lite2": lpips}])

    students = [
        result("none", 0.045, 1.3),
        result("enc", 0.05, 1.1),
        result("enc", 0.09, 0.9),
        result("none", 0.089, 1.2),
    ]
    teachers = [result("teacher", 0.02, 1.2), result("teacher", 0.046, 1.0), result("teacher", 0.08, 0.8)]
    assert _telling([*students, *teachers], "a", claim) == (5, 1)
    assert _telling([*students, teachers[0], teachers[2]], "a", claim) == (3, 2), (
        "no teacher there: what the claim compares"
    )
    assert _telling([*students[2:], *teachers], "a", claim) == (1, 0), "no student of that rate there"
