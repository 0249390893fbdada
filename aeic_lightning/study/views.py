"""Views of a study as files: runs side by side, and what a sweep makes of its finished runs."""

import io
import itertools
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from aeic_lightning.checkpoints.weights import WEIGHTS
from aeic_lightning.errors import UserError
from aeic_lightning.files import locate, write_whole
from aeic_lightning.metrics.table import find_metric, read_metrics
from aeic_lightning.output import align
from aeic_lightning.provenance import command_line
from aeic_lightning.study import halving, search
from aeic_lightning.study.bd_rate import MIN_POINTS
from aeic_lightning.study.bd_rate import markdown_table as rates_table
from aeic_lightning.study.claims import (
    MIN_IMAGES,
    MIN_SEEDS,
    Answer,
    Needs,
    answers_by_set,
    markdown,
    read_claims,
    unanswerable,
)
from aeic_lightning.study.ranking import agreements
from aeic_lightning.study.results import (
    RATES,
    Result,
    agree,
    check_same_images,
    common_metrics,
    metrics_of,
    read_result,
    read_results,
    write_json,
    write_results,
)
from aeic_lightning.study.study import Curve, Study, default_reference, group
from aeic_lightning.study.sweep_file import COMPARISONS, Run, Sweep, labelled

# ---------------------------------------------------------------------- runs side by side

EQUAL_BPP = 0.06
"""Bits per pixel of a comparison with models, where no rate is given."""


def compare_runs(
    folders: Sequence[str | Path], out: Path, paper: str | None = None, bpp: float | None = None
) -> list[Result]:
    """Write comparison.md, comparison.json (with .csv) and comparison.png to `out`, print the table.

    Runs are shown as their last validation found them. With `bpp`, or where one of `folders` is a model (a shipped
    one's name, a checkpoint or a folder of weights), all of them code the images of that validation anew, each in the
    best file of at most `bpp` bits per pixel (default `EQUAL_BPP`), or its smallest.

    Where there is a reference with enough rates (the teacher, else the first anchor), BD-rates follow the table, and
    with `paper` (Kodak, DIV2K or CLIC) the published results and the settings that differ from the paper's.

    Raises UserError when the runs were not validated on the same images.
    """
    models = [folder for folder in folders if _is_model(folder)]
    if models or bpp is not None:
        results = at_equal_rates(folders, models, out / "pictures", EQUAL_BPP if bpp is None else bpp)
    else:
        results = [read_result(folder) for folder in folders]
    check_same_images(results)
    study = Study(results)
    curves = study.curves
    text = markdown_table(curves)
    references = [c for c in default_reference(curves) if len(c.settings) >= MIN_POINTS]
    tests = [c for c in curves if c not in references]
    if references and tests:
        rows = study.rates(references[0], tests, common_metrics(results), equal_bits=True)
        text += "\n" + rates_table(rows)
    if paper:
        from aeic_lightning.study.paper_comparison import with_paper  # which imports torch

        text += "\n" + with_paper(results, paper)
    write_results(out / "comparison.json", results)
    write_whole(out / "comparison.md", text)
    png = io.BytesIO()
    draw(results).save(png, "PNG")
    write_whole(out / "comparison.png", png.getvalue())
    print(align(text))
    print(f"written: {out}/comparison.md, comparison.json, comparison.csv, comparison.png")
    return results


def _is_model(path: str | Path) -> bool:
    found = locate(path)
    return found.suffix == ".ckpt" or (found.is_dir() and (found / WEIGHTS).is_file())


def at_equal_rates(paths: Sequence[str | Path], models: Sequence[str | Path], out: Path, bpp: float) -> list[Result]:
    """Models and the last checkpoints of runs, evaluated by files of one rate on the images of the first run.

    Raises UserError where there is no run, or one has no checkpoint.
    """
    runs = [Path(path) for path in paths if path not in models]
    if not runs:
        raise UserError("compare: give a run too, whose validation images the models are compared on")
    from aeic_lightning.study.anchors import images_like  # torch, and all that measures
    from aeic_lightning.study.evaluate import Checkpoint, RatePoint, evaluate_checkpoint
    from aeic_lightning.study.measurement import measurement

    images = images_like([read_result(run) for run in runs])
    figures, results = measurement(["lite0"]), []
    for path in paths:
        checkpoint = Checkpoint(path if path in models else Path(path) / "checkpoints" / "last.ckpt")
        name = checkpoint.description["name"]
        print(f"{name}: files of at most {bpp:g} bits per pixel", flush=True)
        point = RatePoint(bpp=bpp)
        result = evaluate_checkpoint(checkpoint, images, figures, point=point, name=name, pictures=out / name)
        results.append(replace(result, name=name))
    return results


def markdown_table(curves: Sequence[Curve], labels: Sequence[str] = ()) -> str:
    """One row a result: its curve, `labels` that are to be shown, rates, metrics, and costs where they are known.

    Metric names say their backbone; bpp is bytes of files, bpp_estimate a likelihood. A value that is not finite, or
    was not measured, is a dash.
    """
    results = [result for curve in curves for result in curve.results]
    metrics = metrics_of(results)
    rates = [rate for rate in RATES if any(r.value(rate) is not None for r in results)]
    files = any(mean_bytes(r) is not None for r in results)
    costs = any(r.costs for r in results)
    head = ["run", "curve", *labels, *(["bytes a file"] if files else []), *rates, *(m.name for m in metrics)]
    head += ["g_a MACs/px", "encode MACs/px", "encode params"] if costs else []
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, result in ((curve.name, result) for curve in curves for result in curve.results):
        cells = [result.name, name, *(str(result.labels.get(label, "-")) for label in labels)]
        cells += [_cell(mean_bytes(result), ".1f")] if files else []
        cells += [_cell(result.value(rate), ".4f") for rate in rates]
        values = [result.value(m.name) for m in metrics]
        cells += ["-" if v is None or not math.isfinite(v) else m.text(v) for m, v in zip(metrics, values, strict=True)]
        if costs:
            macs, parameters = (
                (result.costs or {}).get(key, {}) for key in ("encoder_macs_per_pixel", "encoder_parameters")
            )
            cells += [_cell(macs.get(part), ",.0f") for part in ("g_a", "encode")]
            cells += [_cell(parameters.get("encode"), ",")]
        lines.append("| " + " | ".join(cells) + " |")
    names = sorted({image["name"] for image in results[0].images})
    listed = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    lines += [
        "",
        f"Means over {len(names)} images ({listed}); bpp is bytes of the files over pixels, bpp_estimate a likelihood.",
    ]
    return "\n".join(lines) + "\n"


def mean_bytes(result: Result) -> float | None:
    """Mean size of an image's file; None where there are no files."""
    sizes = [image["bytes"] for image in result.images if image.get("bytes") is not None]
    return sum(sizes) / len(sizes) if sizes else None


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def draw(rows: list[Result], max_images: int = 3) -> Image.Image:
    """Original beside each result's reconstruction, one row per image, with rate and PSNR above each."""
    by_name = [{image["name"]: image for image in row.images} for row in rows]
    tiles = []
    for name in sorted(by_name[0])[:max_images]:
        pictures = [rows[0].original(name), *(row.pictures.get(name) for row in rows)]
        missing = next((row.name for row, picture in zip((rows[0], *rows), pictures, strict=True) if not picture), None)
        if missing:
            raise UserError(f"{missing} has no picture of {name}; run it with ReconstructionGrid(save_images: true)")
        captions = ["original"] + [
            f"{row.name}  {_rate(f[name])}  {_cell(f[name]['psnr'], '.2f')} dB"
            for row, f in zip(rows, by_name, strict=True)
        ]
        tiles.append(list(zip(pictures, captions, strict=True)))
    opened = [[(Image.open(path).convert("RGB"), caption) for path, caption in row] for row in tiles]
    bar = 18
    width = max(sum(image.width + 4 for image, _ in row) for row in opened)
    height = sum(max(image.height for image, _ in row) + bar for row in opened)
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    y = 0
    for row in opened:
        x = 0
        for image, caption in row:
            pen.text((x + 2, y + 3), caption, fill="black")
            picture.paste(image, (x, y + bar))
            x += image.width + 4
        y += bar + max(image.height for image, _ in row)
    return picture


def _rate(image: dict) -> str:
    return f"{image['bpp']:.3f} bpp" if "bpp" in image else f"{image['bpp_estimate']:.3f} bpp est."


# ---------------------------------------------------------------------- a sweep's finished runs

RESAMPLES = 1000  # of every bootstrap


def finish(sweep: Sweep) -> None:
    """Write what the sweep file asks for under `report` and `compare`."""
    if sweep.report:
        _report(sweep)
    if names := sweep.compare.get("runs"):
        _compare(sweep, names)


@contextmanager
def _threads_of(runs: Sequence[Run]) -> Iterator[None]:
    """As many threads as a run has, for models that are run here."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(run.threads for run in runs))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_claims(sweep: Sweep, settings: dict[str, dict[str, Any]]) -> None:
    """Raise UserError for a claim of the report that will match no curve, or several: before anything is trained.

    Claims about runs that are not in this sweep are passed over with `optional_claims`; the page says so.

    Args:
        sweep: the sweep.
        settings: the resolved config of each run, by name.
    """
    from aeic_lightning.study.experiment import experiment_settings
    from aeic_lightning.study.run_description import run_labels

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
    known = {Path(result.name).name for result in expected}
    before = read_results(sweep.report.get("earlier") or [])
    before = [result for result in before if result.name.rsplit(" at ", 1)[0] not in known]
    # Once for all sets of images; without their settings, in which defaults stand that a config leaves out.
    expected += [replace(r, kind="run", settings={}) for r in {repr(r.labels): r for r in before}.values()]
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
    models = sweep.compare.get("models") or []
    by, out = sweep.compare.get("by", "quality"), Path(sweep.compare.get("out") or sweep.root)
    module, function = COMPARISONS[by].rsplit(".", 1)
    given = {"bpp": sweep.compare["bpp"]} if "bpp" in sweep.compare else {}
    measured = by == "quality" and not models and not given
    with nullcontext() if measured else _threads_of(sweep.runs):
        getattr(import_module(module), function)([*models, *(sweep.root / name for name in names)], out, **given)


def image_set_words(wanted: dict[str, Any], paths: Sequence[Path]) -> dict[frozenset[str], str]:
    """What each set of images is, in words, by the names of its images; files of results are named after the set."""
    said = wanted.get("images") or {}
    found = {name: next((p for p in paths if p.stem == name or p.stem.startswith(f"{name}_")), None) for name in said}
    return {
        frozenset(row["name"] for row in read_results([path])[0].images): said[name]
        for name, path in found.items()
        if path
    }


def with_earlier(results: Sequence[Result], files: Sequence[str]) -> list[Result]:
    """The results, and those in `files` of other runs or of other images, with such of their pictures as are there."""
    measured = {(result.name, result.image_set) for result in results}
    added = [result for result in read_results(files) if (result.name, result.image_set) not in measured]
    pictures = [{name: path for name, path in result.pictures.items() if path.is_file()} for result in added]
    return [*results, *(replace(r, pictures=there) for r, there in zip(added, pictures, strict=True))]


def _report_candidates(root: Path, out: Path) -> None:
    """Keep what was decided beside the results, and say how far the rankings at the rungs agree."""
    for name in (halving.FILE, search.FILE):
        if (root / name).is_file():
            shutil.copyfile(root / name, out / name)
    for entry, found in agreements(root / halving.FILE).items():
        print(f"{entry}: {found.words}")


def _report(sweep: Sweep) -> None:
    from aeic_lightning.study.report.page import write_report

    wanted, out = sweep.report, Path(sweep.report["out"])
    select = wanted.get("select") or {}
    runs = labelled(sweep.runs, select)
    paths = [run.folder for run in runs]
    if wanted.get("evaluate"):
        from aeic_lightning.study.sweep_evaluation import evaluated

        with _threads_of(sweep.runs):
            paths = evaluated(runs, wanted["evaluate"], sweep.root)
    results = with_earlier(read_results(paths), wanted.get("earlier") or [])
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
    write_whole(out / "bd_rate.md", rates_table(rows) + "\n")
    print(align(rates_table(rows)))
    words = [",".join(f"{label}={value}" for label, value in e["reference"].items()) for e in wanted["against"]]
    answered = _answer(study, wanted, out / "answer.md") if wanted.get("claims") else []
    said = write_report(
        study.with_more(read_results(wanted.get("files") or [])), out / "index.html", words,
        title=wanted.get("title", "Rate, distortion and perception"), answered=answered, command=command_line(),
        headline=wanted.get("headline", 1),
        max_images=wanted.get("max_images", 6), resamples=RESAMPLES,
        arms=wanted.get("arms"), images=image_set_words(wanted, paths), root=sweep.root if sweep.halves else None,
    )  # fmt: skip
    if sweep.halves:
        _report_candidates(sweep.root, out)
    print(f"written: {out}/results.json, results.csv, bd_rate.json, bd_rate.md, index.html ({said})")


def _answer(study: Study, wanted: dict[str, Any], out: Path) -> list[tuple[str, list[Answer]]]:
    """What each set of images says of the report's claims, written to `out`; those that do not hold are printed."""
    needs = Needs(wanted.get("min_images", MIN_IMAGES), wanted.get("min_seeds", MIN_SEEDS))
    answered = answers_by_set(study, read_claims(wanted["claims"]), RESAMPLES, needs)
    for images, found in answered:
        for answer in found:
            if answer.verdict.startswith("not "):
                print(f'{answer.verdict}, on {images}: "{answer.claim.says}". {answer.reason}')
    if answered:
        write_whole(out, markdown(wanted.get("title", "Answer"), answered))
    return answered
