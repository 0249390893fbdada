"""Candidates drawn from a grid within a budget, and the page's front of them."""

import json
from pathlib import Path

import numpy as np
import pytest

from aeic_lightning.errors import UserError
from aeic_lightning.models.integer import MicroEncoder
from aeic_lightning.study import halving, search
from aeic_lightning.study.report.candidates import candidates, front
from aeic_lightning.study.search import Search, draw
from aeic_lightning.study.sweep_file import read_sweep

ROOT = Path(__file__).parents[2]
AXES = {"width": [10, 20, 30, 40], "depth": [1, 2, 3], "seed": [0, 1]}


def cost(point: dict) -> dict:
    return {"macs_per_pixel": point["width"] * point["depth"], "parameters": 100 * point["width"]}


def test_candidates_are_distinct_points_within_the_budget(tmp_path):
    wanted = Search(5, seed=3, budget={"macs_per_pixel": 60, "weight_bytes": 3500}, weight_bits=8)
    drawn = draw(AXES, wanted, cost, tmp_path, None)
    assert [point["candidate"] for point in drawn] == ["c01", "c02", "c03", "c04", "c05"]
    pairs = {(point["width"], point["depth"]) for point in drawn}
    assert len(pairs) == 5
    assert all(width * depth <= 60 and width <= 35 for width, depth in pairs)
    assert not any("seed" in point for point in drawn), "each candidate has all seeds"
    record = json.loads((tmp_path / search.FILE).read_text())
    assert all(e["macs_per_pixel"] > 60 or e["weight_bytes"] > 3500 for e in record["over_budget"])
    four_bits = Search(7, budget={"weight_bytes": 1500}, weight_bits=4)
    assert {point["width"] for point in draw(AXES, four_bits, cost, tmp_path, None)} == {10, 20, 30}


def test_what_was_drawn_is_kept_until_the_search_changes(tmp_path):
    def once(point):
        counted.append(point)
        return cost(point)

    counted: list[dict] = []
    first = draw(AXES, Search(4), once, tmp_path, "experiment")
    calls = len(counted)
    assert draw(AXES, Search(4), once, tmp_path, "experiment") == first
    assert len(counted) == calls
    draw(AXES, Search(4), once, tmp_path, "another experiment")
    assert len(counted) > calls
    assert {str(draw(AXES, Search(4, seed=seed), cost, tmp_path, None)) for seed in range(5)} != {str(first)}


def test_a_budget_that_is_too_small_is_said(tmp_path):
    with pytest.raises(UserError, match=r"2 of 3 candidates are within the budget .*, 10 were beyond it; widen"):
        draw(AXES, Search(3, budget={"macs_per_pixel": 20, "weight_bytes": 1999}), cost, tmp_path, None)


SWEEP = """
root: {folder}/runs
runs:
- name: "{{candidate}}_{{seed}}"
  grid: {{hyper: [64], seed: [0, 1]}}
  config: {root}/experiments/micro/integer_enc.yaml
  set: {{model.init_args.codec.h_a.init_args.width: "{{hyper}}", vars.seed: "{{seed}}"}}
  search: {{candidates: 1, budget: {{macs_per_pixel: {macs}}}}}
"""


def test_a_sweep_counts_what_the_whole_sender_costs(tmp_path):
    """The figures of docs/integer_sender.md, with the density of z, which becomes a table."""
    (tmp_path / "sweep.yaml").write_text(SWEEP.format(folder=tmp_path, root=ROOT, macs=1000))
    runs = read_sweep(tmp_path / "sweep.yaml", []).runs
    assert [run.name for run in runs] == ["c01_0", "c01_1"]
    assert runs[1].settings["model.init_args.labels.candidate"] == "c01"
    (entry,) = json.loads((tmp_path / "runs" / search.FILE).read_text())["candidates"]
    assert round(entry["macs_per_pixel"]) == 987
    assert entry["weight_bytes"] == entry["parameters"] == 386240 + 64 * 58
    (tmp_path / "sweep.yaml").write_text(SWEEP.format(folder=tmp_path, root=ROOT, macs=900))
    with pytest.raises(UserError, match="0 of 1 candidates are within the budget"):
        read_sweep(tmp_path / "sweep.yaml", [])


def test_stem_depth_and_numbers_for_all_stages():
    widths, wide = (8, 16, 24), (16, 32, 48)
    whole = MicroEncoder(widths, wide, (5, 5, 5), 32, stem=8)
    short = MicroEncoder(widths, 2, 5, 32, stem=8)
    assert [p.shape for p in whole.parameters()] == [p.shape for p in short.parameters()]
    blocks = [sum(type(m).__name__ == "IntegerBlock" for m in MicroEncoder(widths, 1, 3, depth=d)) for d in (0, 1, 2)]
    assert blocks == [0, 3, 6]
    for words in ({"stem": 3}, {"stem": 1}, {"depth": -1}):
        with pytest.raises(UserError, match="stem is 2, 4, 8"):
            MicroEncoder(widths, 1, 3, **words)


# ---------------------------------------------------------------------- the page


def test_the_front_is_what_no_candidate_beats():
    points = [tuple(point) for point in np.random.default_rng(2).integers(0, 30, (40, 2)).tolist()]
    unbeaten = {(x, y) for x, y in points if not any((a <= x and b < y) or (a < x and b <= y) for a, b in points)}
    assert front(points) == sorted(unbeaten)


def test_the_page_shows_each_candidate_at_its_highest_rung(tmp_path):
    def figures(value, percent, macs):
        return {"value": value, "percent": percent, "macs_per_pixel": macs, "parameters": 100 * macs}

    low = {"c01": figures(0.03, 9.0, 500), "c02": figures(0.02, None, 900), "c03": figures(None, None, 700)}
    high = {"c01": figures(0.01, 4.0, 500), "c02": figures(0.02, 5.0, 900)}
    record = [
        {"entry": "{candidate}", "rung": rung, "metric": "lpips_lite2", "candidates": own, "stay": None}
        for rung, own in ((20, low), (80, high))
    ]
    (tmp_path / halving.FILE).write_text(json.dumps(record))
    drawn_before = {"candidates": [{"candidate": "c01", "point": {"width": 16}}], "over_budget": [{}, {}]}
    (tmp_path / search.FILE).write_text(json.dumps(drawn_before))
    plots: dict = {}
    (section,) = candidates(tmp_path, plots)
    assert [(row["name"], row["rung"], row["percent"]) for row in section["rows"]] == [
        ("c01", 80, 4.0), ("c02", 80, 5.0), ("c03", 20, None)
    ]  # fmt: skip
    assert section["rows"][0]["config"] == "width 16"
    assert section["beyond"] == 2
    assert "Kendall's tau of the ranking at 20 updates against 80: -1.00; 2 of 3 candidates" in section["agreement"]
    line, points = plots[section["id"]]["data"]
    assert (line["x"], line["y"]) == ([500], [4.0])
    assert (points["x"], points["y"], points["text"]) == ([500, 900], [4.0, 5.0], ["c01", "c02"])
    assert candidates(tmp_path / "elsewhere", plots) == []
