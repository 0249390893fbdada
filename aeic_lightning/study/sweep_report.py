"""What a sweep makes of its finished runs: results, BD-rates and the page, and the comparison."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from aeic_lightning.errors import UserError
from aeic_lightning.provenance import command_line
from aeic_lightning.study.sweep_file import COMPARISONS, Sweep, labelled

RESAMPLES = 1000  # of every bootstrap


def finish(sweep: Sweep) -> None:
    """Write what the sweep file asks for under `report` and `compare`, on as many threads as a run has."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(run.threads for run in sweep.runs))
    try:
        if sweep.report:
            _report(sweep)
        if names := sweep.compare.get("runs"):
            _compare(sweep, names)
    finally:
        torch.set_num_threads(before)


def check_claims(sweep: Sweep, settings: dict[str, dict[str, Any]]) -> None:
    """Raise UserError for a claim of the report that will match no curve, or several: before anything is trained.

    Claims about runs that are not in this sweep are passed over with `optional_claims`; the page says so.

    Args:
        sweep: the sweep.
        settings: the resolved config of each run, by name.
    """
    from aeic_lightning.metrics.own import read_metrics
    from aeic_lightning.metrics.table import find_metric
    from aeic_lightning.study.claims import read_claims, unanswerable
    from aeic_lightning.study.results import Result
    from aeic_lightning.study.run_description import experiment_settings, run_labels
    from aeic_lightning.study.study import group

    wanted = sweep.report.get("evaluate") or {}
    expected = []
    for config in settings.values():
        callbacks = (config.get("trainer") or {}).get("callbacks")
        for callback in callbacks if isinstance(callbacks, list) else []:
            read_metrics((callback.get("init_args") or {}).get("metrics") if _measures(callback) else None)
    for run in labelled(sweep.runs, sweep.report.get("select") or {}):
        config = settings[run.name]
        labels = run_labels(config, config.get("seed_everything"))
        expected.append(Result(run.name, "run", labels, {}, settings=experiment_settings(config)))
    expected += [Result(model, "checkpoint", wanted.get("labels") or {}, {}) for model in wanted.get("models") or []]
    curves = group(expected)
    for claim in read_claims(sweep.report.get("claims")):
        if find_metric(claim.metric) is None:
            raise UserError(f"report: claims: there is no metric {claim.metric!r}")
        why = unanswerable(claim, curves)
        if why and not (sweep.report.get("optional_claims") and why.startswith("no curve")):
            raise UserError(
                f'report: claims: "{claim.says}": {why}; correct the claim or the runs, or say optional_claims: true '
                "for claims about arms that are left out"
            )


def _measures(callback: Any) -> bool:
    return isinstance(callback, dict) and str(callback.get("class_path")).endswith("QualityMetrics")


def _compare(sweep: Sweep, names: Sequence[str]) -> None:
    paths = [*(sweep.compare.get("models") or []), *(sweep.root / name for name in names)]
    module, function = COMPARISONS[sweep.compare.get("by", "quality")].rsplit(".", 1)
    given = {"bpp": sweep.compare["bpp"]} if "bpp" in sweep.compare else {}
    getattr(import_module(module), function)(paths, Path(sweep.compare.get("out") or sweep.root), **given)


def _report(sweep: Sweep) -> None:
    from aeic_lightning.files import write_whole
    from aeic_lightning.output import align
    from aeic_lightning.study.bd_rate import markdown_table
    from aeic_lightning.study.claims import MIN_IMAGES, MIN_SEEDS, Needs, answers_by_set, markdown, read_claims
    from aeic_lightning.study.report.page import write_report
    from aeic_lightning.study.results import agree, common_metrics, read_results, write_json, write_results
    from aeic_lightning.study.study import Study

    wanted, out = sweep.report, Path(sweep.report["out"])
    select = wanted.get("select") or {}
    runs = labelled(sweep.runs, select)
    paths = [run.folder for run in runs]
    if wanted.get("evaluate"):
        from aeic_lightning.study.sweep_evaluation import evaluated

        paths = evaluated(runs, wanted["evaluate"], out)
    results = read_results(paths)
    write_results(out / "results.json", results)
    study = Study(results)
    rows = []
    for entry, curves in itertools.product(wanted["against"], [s.curves for s in study.sets]):
        for reference in (c for c in curves if agree(c.labels, entry["reference"])):
            within = {label: reference.labels.get(label) for label in entry.get("within") or []}
            tests = [c for c in curves if c is not reference and agree(c.labels, within)]
            metrics = wanted.get("metrics") or common_metrics(results)
            rows += study.rates(reference, tests, metrics, equal_bits=True, resamples=RESAMPLES)
    write_json(out / "bd_rate.json", {"format": "aeic_lightning bd-rate 1", "rows": [asdict(row) for row in rows]})
    write_whole(out / "bd_rate.md", markdown_table(rows) + "\n")
    print(align(markdown_table(rows)))
    words = [",".join(f"{label}={value}" for label, value in e["reference"].items()) for e in wanted["against"]]
    claims = read_claims(wanted.get("claims"))
    needs = Needs(wanted.get("min_images", MIN_IMAGES), wanted.get("min_seeds", MIN_SEEDS))
    answered = answers_by_set(study, claims, RESAMPLES, needs)
    for images, found in answered:
        for answer in found:
            if answer.verdict.startswith("not "):
                print(f'{answer.verdict}, on {images}: "{answer.claim.says}". {answer.reason}')
    if answered:
        write_whole(out / "answer.md", markdown(wanted.get("title", "Answer"), answered))
    said = write_report(
        study.with_more(read_results(wanted.get("files") or [])), out / "index.html", words,
        title=wanted.get("title", "Rate, distortion and perception"), answered=answered, command=command_line(),
        max_images=wanted.get("max_images", 6), resamples=RESAMPLES,
    )  # fmt: skip
    print(f"written: {out}/results.json, results.csv, bd_rate.json, bd_rate.md, index.html ({said})")
