"""Axes that interact: settings that hold at some points of a sweep's grid alone."""

import pytest

from aeic_lightning.errors import UserError
from aeic_lightning.study.sweep_file import read_sweep

RUNS = """
runs:
  - name: encoder={encoder}_arm={arm}
    config: a.yaml
    grid: {arm: [none, enc, enc_dec], encoder: {star: {}, mine: {model: {encoder: my.Encoder}}}}
    set: {model: {taps: [y], depth: 1}}
    exceptions:
"""


def taps(folder, *exceptions):
    """Name of each run -> its taps, from its resolved config."""
    (folder / "a.yaml").write_text("model: {encoder: star, taps: [], depth: 0}\n")
    listed = "".join(f"      - {exception}\n" for exception in exceptions)
    (folder / "sweep.yaml").write_text(f"root: {folder}\n{RUNS}{listed}")
    configs = {run.name: run.resolved()["model"] for run in read_sweep(folder / "sweep.yaml", []).runs}
    assert {name: config["encoder"] == "my.Encoder" for name, config in configs.items()} == {
        name: "mine" in name for name in configs
    }
    assert all(config["depth"] == 1 for config in configs.values()), "an axis took away what the entry sets beside it"
    return {name: config["taps"] for name, config in configs.items()}


def test_an_exception_holds_where_all_of_its_values_do(tmp_path):
    found = taps(tmp_path, "{when: {arm: enc_dec, encoder: mine}, set: {model.taps: [mine.last]}}")
    assert found.pop("encoder=mine_arm=enc_dec") == ["mine.last"]
    assert len(found) == 5
    assert set(map(tuple, found.values())) == {("y",)}


def test_lists_stand_for_any_and_later_exceptions_win(tmp_path):
    found = taps(
        tmp_path,
        "{when: {arm: [enc, enc_dec], encoder: mine}, set: {model: {taps: ['{arm}']}}}",
        "{when: {arm: enc}, set: {model.taps: [later]}}",
    )
    assert found == {
        "encoder=star_arm=none": ["y"],
        "encoder=mine_arm=none": ["y"],
        "encoder=star_arm=enc": ["later"],
        "encoder=mine_arm=enc": ["later"],
        "encoder=star_arm=enc_dec": ["y"],
        "encoder=mine_arm=enc_dec": ["enc_dec"],
    }


@pytest.mark.parametrize(
    ("exception", "said"),
    [
        ("{when: {arm: dec}, set: {model.taps: [z]}}", r"no run of the grid is as the exception's when, .*dec"),
        ("{when: {arms: enc}, set: {model.taps: [z]}}", r"when names 'arms', but the grid has arm, encoder"),
        ("{when: {}, set: {model.taps: [z]}}", r"when is a mapping with at least one entry, not {}"),
        ("{when: {arm: enc}, set: [z]}", r"set is a mapping with at least one entry, not \['z'\]"),
        ("{when: {arm: enc}}", r"an exception lacks set"),
        ("{when: {arm: enc}, sets: {a: 1}}", r"an exception has no 'sets'"),
    ],
)
def test_an_exception_that_would_do_nothing_is_refused(tmp_path, exception, said):
    with pytest.raises(UserError, match=said) as refusal:
        taps(tmp_path, exception)
    assert "\n" not in str(refusal.value)


def test_exceptions_are_a_list(tmp_path):
    (tmp_path / "a.yaml").touch()
    entry = "{name: a, config: a.yaml, exceptions: {when: {arm: enc}, set: {a: 1}}}"
    (tmp_path / "sweep.yaml").write_text(f"root: {tmp_path}\nruns: [{entry}]\n")
    with pytest.raises(UserError, match="exceptions is a list of"):
        read_sweep(tmp_path / "sweep.yaml", [])


@pytest.mark.parametrize(
    ("compare", "said"),
    [
        ("{runs: [a], output: x}", r"compare has no 'output'"),
        ("{by: quality}", r"compare lacks runs"),
        ("{runs: [a], by: accuracy, models: [small-teacher]}", r"compare\.models is for a comparison by quality"),
        (
            "{runs: [a]}\nreport: {out: o, against: [{reference: {role: teacher}}], arms: [none]}",
            r"arms says in words what each is",
        ),
        ("{runs: [a], bpp: 0}", r"compare\.bpp is bits per pixel, above 0, not 0"),
    ],
)
def test_a_comparison_that_would_do_less_is_refused(tmp_path, compare, said):
    (tmp_path / "a.yaml").touch()
    runs = "runs: [{name: a, config: a.yaml}]"
    (tmp_path / "sweep.yaml").write_text(f"root: {tmp_path}\n{runs}\ncompare: {compare}\n")
    with pytest.raises(UserError, match=said):
        read_sweep(tmp_path / "sweep.yaml", [])
