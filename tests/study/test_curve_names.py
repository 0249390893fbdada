"""The names of curves."""

from aeic_lightning.study.curves import group
from aeic_lightning.study.results import Result


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
    ) == ["depth 1 · none", "depth 1 · enc · stage 1", "depth 1 · enc · stage 2"]
    assert names({"role": "student"}, {"role": "student"}) == ["run0", "run1"]
