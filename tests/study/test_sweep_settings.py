"""No setting of a sweep file is accepted and does less than it says; `tests/test_settings.py` has those of runs."""

from typing import Any

import yaml

from aeic_lightning.study import sweep_file

RUN = {"name": "a_{x}", "config": "a.yaml", "grid": {"x": [1, 2]}}
BASE = {"root": "runs", "runs": [{"name": "first", "config": "a.yaml"}, RUN]}
SWEEP = {
    "root": "elsewhere",
    "runs": [{"name": "first", "config": "a.yaml"}],
    "set": {"x": 3},
    "cluster": "slurm",
    "workers": 3,
    "threads": 7,
    "gpus": 2,
    "executor": {"timeout_min": 3},
    "compare": {"runs": ["first"]},
    "report": {"out": "o", "against": [{"reference": {"x": 1}}]},
}
SWEEP_RUN = {
    "name": "b_{x}",
    "config": "b.yaml",
    "needs": ["first"],
    "set": {"y": 3},
    "grid": {"x": [1, 3]},
    "exceptions": [{"when": {"x": 1}, "set": {"y": 3}}],
    "labels": {"arm": "enc"},
    "threads": 7,
    "gpus": 2,
    "rungs": [10, 40],
}
LADDER = {"decay": 0.5, "halving": {"factor": 2, "metric": "lpips_lite2", "reference": {"x": 1}}}
"""Of an entry with rungs. `search` has its own test, which draws from a model's costs: tests/study/test_search.py."""


def test_every_setting_of_a_sweep_and_of_its_runs(tmp_path):
    """Those of `report` and `compare` are kept as they are and unknown ones refused; their tests are in tests/study."""
    assert set(SWEEP) == sweep_file.SWEEP_KEYS
    assert {*SWEEP_RUN, *LADDER, "search"} == sweep_file.ENTRY_KEYS
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_text("x: 1\ny: 2\n")

    def read(settings: dict[str, Any]) -> Any:
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(settings))
        sweep = sweep_file.read_sweep(tmp_path / "sweep.yaml", [])
        return [vars(run) | {"resolved": run.resolved()} for run in sweep.runs], vars(sweep) | {"runs": None}

    base = read(BASE)
    for name, value in SWEEP.items():
        assert read(BASE | {name: value}) != base, name
    for name, value in SWEEP_RUN.items():
        assert read(BASE | {"runs": [BASE["runs"][0], RUN | {name: value}]}) != base, name
    report = SWEEP["report"] | {"evaluate": {"levels": [0.0], "images": {"validation": None}}}
    ladder = RUN | {"rungs": SWEEP_RUN["rungs"]}
    without = read(BASE | {"report": report, "runs": [BASE["runs"][0], ladder]})
    for name, value in LADDER.items():
        runs = [BASE["runs"][0], ladder | {name: value}]
        assert read(BASE | {"report": report, "runs": runs}) != without, name
