"""`vars` that a sweep sets for every run reach those that refer to them, and are no error in the others."""

import pytest

from aeic_lightning.errors import UserError
from aeic_lightning.study.sweep_file import read_sweep


def test_a_shared_var_reaches_the_runs_that_use_it(tmp_path):
    (tmp_path / "a.yaml").write_text("vars: {width: 1}\nx: ${vars.width}\n")
    (tmp_path / "b.yaml").write_text("y: 2\n")
    runs = "runs: [{name: a, config: a.yaml}, {name: b, config: b.yaml}]"
    (tmp_path / "sweep.yaml").write_text(f"root: {tmp_path}\nset: {{vars.width: 3}}\n{runs}\n")
    a, b = read_sweep(tmp_path / "sweep.yaml", []).runs
    assert a.resolved()["x"] == 3
    assert b.resolved() == {"y": 2}
    with pytest.raises(UserError, match=r"vars.widht is set, but no run's experiment refers to it"):
        read_sweep(tmp_path / "sweep.yaml", ["set.vars.widht=3"])
    own = "runs: [{name: b, config: b.yaml, set: {vars.depth: 3}}]"
    (tmp_path / "sweep.yaml").write_text(f"root: {tmp_path}\n{own}\n")
    (run,) = read_sweep(tmp_path / "sweep.yaml", []).runs
    with pytest.raises(UserError, match=r"vars.depth is set, but nothing refers to it"):
        run.resolved()
