"""Successive halving: who stays, what is run, and that interruptions change nothing."""

import json
import math
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aeic_lightning.errors import UserError
from aeic_lightning.study import runner, views
from aeic_lightning.study.executors import ClusterRun, LocalRun
from aeic_lightning.study.halving import FILE, Rounds, expected_share, staying
from aeic_lightning.study.results import Result, summary_rows, write_results
from aeic_lightning.study.sweep_file import LOG, Run, Sweep, read_sweep

LEVELS = (0, 1, 2, 3)
# What LPIPS a width has at each rung, above the reference; at the first rung 16 misleads.
WORSE = {
    8: (0.09, 0.09, 0.09),
    16: (0.01, 0.05, 0.05),
    24: (0.05, 0.04, 0.03),
    32: (0.04, 0.03, 0.02),
    48: (0.03, 0.02, 0.01),
}


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20, unique=True), st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_the_best_of_so_many_stay(values, factor):
    named = {str(number): value for number, value in enumerate(values)}
    best = sorted(named, key=lambda name: named[name])[: max(1, len(values) // factor)]
    assert staying(named, factor) == [name for name in named if name in best]


def test_what_has_no_value_does_not_stay():
    assert staying({"a": math.nan, "b": 0.5, "c": math.nan, "d": 0.4}, 2) == ["d"]
    assert staying({"a": math.nan}, 2) == []
    assert staying({"a": 0.1, "b": math.nan, "c": 0.2}, 1) == ["a", "c"], "one of one goes on"


# ---------------------------------------------------------------------- in a sweep


@pytest.mark.parametrize("where", ["local", "cluster"])
@pytest.mark.parametrize(("second", "done"), [("print('evaluated')", True), ("raise SystemExit('no network')", False)])
def test_an_evaluation_is_a_part_of_its_run(tmp_path, monkeypatch, where, second, done):
    monkeypatch.setattr(Run, "command", [sys.executable, "-c", "print('trained')"])
    run = Run("a", tmp_path / "a.yaml", tmp_path / "a", after=(sys.executable, "-c", second))
    if where == "cluster":
        error = ClusterRun(run)()
    else:
        local = LocalRun(run)
        while not local.done():
            time.sleep(0.01)
        error = local.result()
    assert run.done == done
    assert (error is None) == done
    said = (run.folder / LOG).read_text().split()
    assert said == ["trained", "evaluated"] if done else said == ["trained", "no", "network"]


def read(
    folder: Path, halving: str = "halving: {factor: 2, metric: lpips, reference: {arm: teacher}}", **report
) -> Sweep:
    (folder / "a.yaml").write_text("vars: {w: 0, seed: 0}\nw: ${vars.w}\nseed: ${vars.seed}")
    evaluate = {"levels": list(LEVELS), "models": ["small-teacher"], "labels": {"arm": "teacher"}} | report
    (folder / "sweep.yaml").write_text(
        f"vars: {{root: {folder}/runs}}\nroot: ${{vars.root}}\nruns:\n"
        "- {name: 'w={w}_seed={seed}', grid: {w: [8, 16, 24, 32, 48], seed: [0, 1]}, config: a.yaml,"
        f" set: {{vars.w: '{{w}}', vars.seed: '{{seed}}'}}, rungs: [10, 20, 40], {halving}}}\n"
        f"report: {{out: {folder}/out, against: [{{reference: {{arm: teacher}}}}], evaluate: {json.dumps(evaluate)}}}\n"
    )
    return read_sweep(folder / "sweep.yaml", [])


def write(file: Path, worse: float, labels: dict) -> None:
    """A result file as `evaluate` leaves it: LPIPS falls with each level, at the same bits for everyone."""
    results = []
    for level in LEVELS:
        images = [
            {
                "name": name,
                "height": 8,
                "width": 8,
                "crc32": 1,
                "bpp": 0.01 * 3**level,
                "lpips": 0.5 - 0.1 * level + worse,
            }
            for name in ("a", "b")
        ]
        results.append(
            Result(file.parent.name, "checkpoint", labels | {"level": level}, summary_rows(images), images=images)
        )
    write_results(file, results)


class Fake:
    """An executor that trains nothing: its runs leave the figures of `WORSE`, or fail."""

    def __init__(self, fails: str = "", stops_after: int = 10**6) -> None:
        self.fails, self.left, self.ran = fails, stops_after, []

    def submit(self, run: Run) -> "Fake":
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.ran.append(run.name)
        self.error = "diverged" if run.name == self.fails else None
        if not run.trunk and not self.error:
            labels = {name.removeprefix("model.init_args.labels."): value for name, value in run.settings.items()}
            width, seed, rung = labels["w"], labels["seed"], [10, 20, 40].index(labels["rung"])
            write(
                run.folder / "evaluated" / "validation.json",
                WORSE[width][rung] + 0.001 * seed,
                {"w": width, "seed": seed},
            )
            write(run.folder.parent / "models" / "small-teacher" / "validation.json", 0.0, {"arm": "teacher"})
        if not self.error:
            (run.folder / "finished").touch()
        return self

    def done(self) -> bool:
        return True

    def result(self) -> str | None:
        return self.error

    def release(self, started: object) -> None: ...

    def stop(self) -> None: ...


@pytest.fixture
def sweep_with(monkeypatch):
    """Run a sweep by a fake executor; returns the exit code and the runs of the report."""

    def run(sweep: Sweep, fake: Fake):
        reported: list[str] = []
        monkeypatch.setattr(runner, "LocalExecutor", lambda _: fake)
        monkeypatch.setattr(runner, "POLL", 0)
        monkeypatch.setattr(views, "finish", lambda sweep: reported.extend(run.name for run in sweep.runs))
        return runner.run_sweep(sweep), reported

    return run


def pieces(ran: list[str]) -> dict[str, set[str]]:
    """Widths by `PIECE=RUNG`; both seeds of each ran."""
    found: dict[str, set[str]] = {}
    for name in ran:
        width, seed, piece = name.split("_")
        found.setdefault(piece, set()).add((width.removeprefix("w="), seed))
    for members in found.values():
        assert {(width, f"seed={seed}") for width, _ in members for seed in (0, 1)} == members
    return {piece: {width for width, _ in members} for piece, members in found.items()}


STAYED = {"10": {"8", "16", "24", "32", "48"}, "20": {"16", "48"}, "40": {"48"}}


def test_only_who_stays_goes_to_the_next_rung(tmp_path, sweep_with, capfd):
    code, reported = sweep_with(read(tmp_path), fake := Fake())
    assert code == 0
    assert pieces(fake.ran) == {f"{piece}={rung}": who for rung, who in STAYED.items() for piece in ("trunk", "rung")}
    assert set(reported) == set(fake.ran), "the report has what was run"
    said = capfd.readouterr().out
    assert "rung 10: 2 of 5 stay: w=16; w=48" in said
    assert "rung 20: 1 of 2 stay: w=48" in said
    first, second, last = json.loads((tmp_path / "runs" / FILE).read_text())
    assert (first["rung"], first["stay"], last["rung"], last["stay"]) == (10, ["w=16", "w=48"], 40, None)
    values = [{name: own["value"] for name, own in rung["candidates"].items()} for rung in (first, second, last)]
    assert values[0] == pytest.approx({f"w={width}": worse[0] + 0.0005 for width, worse in WORSE.items()})
    assert values[1] == pytest.approx({"w=16": 0.0505, "w=48": 0.0205})
    assert values[2] == pytest.approx({"w=48": 0.0105})
    # LPIPS falls by 0.1 where the bits triple: so that factor to the power of 0.105 makes up for 0.0105.
    assert last["candidates"]["w=48"]["percent"] == pytest.approx(100 * (3**0.105 - 1), rel=1e-3)


def test_a_report_in_another_place_has_the_same_runs(tmp_path, sweep_with):
    _, reported = sweep_with(read(tmp_path), Fake())
    again = read_sweep(tmp_path / "sweep.yaml", [f"report.out={tmp_path}/elsewhere"])
    _, later = sweep_with(again, fake := Fake())
    assert fake.ran == []
    assert set(later) == set(reported)


@pytest.mark.parametrize("stops_after", [3, 20, 21, 25])
def test_an_interrupted_search_goes_on_to_the_same_end(tmp_path, sweep_with, stops_after):
    first = Fake(stops_after=stops_after)
    with pytest.raises(KeyboardInterrupt):
        sweep_with(read(tmp_path), first)
    code, reported = sweep_with(read(tmp_path), second := Fake())
    assert code == 0
    assert not set(first.ran) & set(second.ran), "nothing is done twice"
    assert pieces(first.ran + second.ran) == {
        f"{piece}={rung}": who for rung, who in STAYED.items() for piece in ("trunk", "rung")
    }
    assert set(reported) == set(first.ran + second.ran)


def test_a_candidate_that_fails_does_not_stay_and_is_said(tmp_path, sweep_with, capfd):
    code, _ = sweep_with(read(tmp_path), fake := Fake(fails="w=48_seed=1_rung=10"))
    assert code == 1
    assert pieces([name for name in fake.ran if "rung=20" in name]) == {"rung=20": {"16", "32"}}
    assert "w=48_seed=1_rung=10: diverged" in capfd.readouterr().out


def test_a_dry_run_knows_who_is_left_out_and_each_branch_is_evaluated_in_its_job(tmp_path, sweep_with, capfd):
    sweep = read(tmp_path)
    assert Rounds(sweep).settle(set()) == []
    sweep_with(sweep, Fake())
    capfd.readouterr()
    runner.run_sweep(sweep, dry_run=True)
    assert "left out w=8_seed=0_trunk=20: " in capfd.readouterr().out
    trunk, branch = sweep.runs[:2]
    assert len(trunk.commands) == 1
    assert branch.commands[1][2:] == [
        "aeic_lightning",
        "sweep",
        "--config",
        f"{tmp_path}/sweep.yaml",
        "--evaluate",
        branch.name,
    ]


def test_what_is_to_be_expected_of_each_rung(tmp_path):
    shares = expected_share(read(tmp_path))
    assert [shares[f"w=8_seed=1_{piece}"] for piece in ("trunk=10", "rung=20", "trunk=40")] == [1.0, 2 / 5, 1 / 5]


AGAINST = "metric: lpips, reference: {arm: teacher}"


@pytest.mark.parametrize(
    ("halving", "report", "message"),
    [
        (f"factor: 0, {AGAINST}", {}, "factor is a whole number, as 4"),
        ("factor: 2, metric: lpips", {}, "halving lacks reference"),
        ("factor: 2, metric: lpips, reference: {arm: me}", {}, "no run has the labels {'arm': 'me'}"),
        (f"factor: 2, {AGAINST}", {"levels": []}, "needs report.evaluate with levels"),
    ],
)
def test_an_impossible_halving_is_said_in_words(tmp_path, halving, report, message):
    with pytest.raises(UserError) as error:
        read(tmp_path, f"halving: {{{halving}}}", **report)
    assert message in str(error.value)
