"""Results become curves: which belong together, and what a curve is called."""

import pytest

from aeic_lightning.study.results import Result
from aeic_lightning.study.study import group, image_sets, matching
from tests.study.made_study import HOSTILE, made_study


@pytest.fixture(scope="module")
def study():
    return made_study()


def test_encoders_are_in_the_order_of_their_numbers():
    labels = [{"encoder": f"Plain width={width}"} for width in (16, 8)] + [{"depth": depth} for depth in (10, 2)]
    curves = group([Result(f"run{i}", "run", own, {}) for i, own in enumerate(labels)])
    assert [c.name for c in curves] == ["depth 2", "depth 10", "Plain width=8", "Plain width=16"]
    assert [c.encoder for c in curves] == [2, 10, "Plain width=8", "Plain width=16"]


def test_curves_have_the_shortest_names_that_tell_them_apart():
    def names(*labels):
        return [c.name for c in group([Result(f"run{i}", "run", own, {}) for i, own in enumerate(labels)])]

    assert names({"role": "teacher", "depth": 2}, {"role": "student", "depth": 1}) == [
        "teacher · depth 2",
        "student · depth 1",
    ]
    assert names(
        {"role": "distillation", "depth": 1, "arm": "enc", "beta1": 0.5, "stage": 1},
        {"role": "distillation", "depth": 1, "arm": "enc", "beta1": 0.5, "stage": 2},
        {"role": "student", "depth": 1, "arm": "none", "stage": 2},
    ) == ["depth 1 · arm none", "depth 1 · arm enc · stage 1", "depth 1 · arm enc · stage 2"]
    assert names({"role": "student"}, {"role": "student"}) == ["run0", "run1"]


def test_rates_of_files_are_told_from_estimates(study):
    estimated = [Result(**vars(r) | {"metrics": {k: v for k, v in r.metrics.items() if k != "bpp"}}) for r in study]
    assert {c.rate for c in group(study)} == {"bpp"}
    assert {c.rate for c in group(estimated)} == {"bpp_estimate"}
    mixed = group([*study[1:], estimated[0]])
    assert {c.name: c.rate for c in mixed}["teacher · depth 2"] == "bpp_estimate", "one rate a curve"


def test_results_on_other_images_are_apart(study):
    others = [Result(**vars(r) | {"images": r.images[:1]}) for r in study[:4]]
    sets = image_sets([*study, *others])
    assert [len(s.results) for s in sets] == [len(study), 4]


def test_sets_of_images_have_titles_of_their_own():
    def result(name, *sides, crc32=0):
        images = [{"name": f"kodim0{i}", "height": h, "width": w, "crc32": crc32} for i, (h, w) in enumerate(sides)]
        return Result(name, "run", {}, {}, images=images)

    upright, across, cut = (768, 512), (512, 768), (256, 256)
    sets = image_sets(
        [
            result("whole", across, upright),
            result("cut", cut, cut),
            result("another cut", cut, cut, crc32=1),
            result("various", cut, across, upright),
            result("without sizes", (None, None)),
        ]
    )
    assert [s.title for s in sets] == [
        "2 images of 512x768 and 768x512: kodim00, kodim01",
        "2 images of 256x256: kodim00, kodim01",
        "2 images of 256x256: kodim00, kodim01 (set 3)",
        "3 images of 3 sizes: kodim00, kodim01, kodim02",
        "1 image: kodim00",
    ]


def test_runs_that_labels_do_not_tell_apart_are_curves_of_their_own(study):
    again = Result(**vars(study[0]) | {"name": "again"})
    names = [c.name for c in group([study[0], again])]
    assert len(set(names)) == 2
    assert "again" in names


def test_references_by_label_and_by_name(study):
    curves = group(study)
    assert [c.labels["arm"] for c in matching("role=student,depth=1", curves)] == ["none", "enc"]
    assert [c.name for c in matching("teacher · depth 2", curves)] == ["teacher · depth 2"]
    assert [c.labels["depth"] for c in matching(HOSTILE, curves)] == [1]
