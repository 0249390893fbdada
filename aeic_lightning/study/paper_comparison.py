"""Runs beside the paper: their rates and metrics beside the published points, and what their configs do differently."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from aeic_lightning.config import load_config
from aeic_lightning.errors import UserError
from aeic_lightning.losses.objective import Entry, objective_settings, read_objective
from aeic_lightning.metrics.table import find_metric
from aeic_lightning.study.complexity import PAPER_ENCODE
from aeic_lightning.study.paper_points import published
from aeic_lightning.study.results import Result

FIGURES = ("lpips_alex", "dists", "fid", "psnr")

# Sections whose settings decide what is trained. Paths, loggers and how the work is spread over machines do not.
_COMPARED = ("model.init_args.codec.", "model.init_args.decoder.", "model.init_args.optimization.", "data.init_args.")
_MACHINES = ("train_dir", "val_dir", "num_workers", "pin_memory", "batch_size", "accumulate", "seed", "unet", "vae",
             "gradient_checkpointing", "tiling")  # fmt: skip


def with_paper(results: Sequence[Result], dataset: str) -> str:
    """Markdown: one table of metrics, one of costs, and for each run that has a config the settings that differ.

    A run is compared with AEIC-ME or AEIC-SE, whichever its role (teacher or not) stands for, at the published point
    whose rate is next to its own.

    Args:
        results: finished runs or evaluations.
        dataset: of the published points: Kodak, DIV2K or CLIC.
    """
    return "\n".join([*_metrics(results, dataset), "", *_costs(results), *_settings(results)]) + "\n"


def paper_codec(result: Result) -> str:
    """AEIC-ME for a teacher, else AEIC-SE."""
    return "AEIC-ME" if result.labels.get("role") == "teacher" else "AEIC-SE"


def nearest(result: Result, dataset: str) -> Result:
    """The published point whose rate is next to that of a result."""
    rate = result.value("bpp_estimate") or result.value("bpp")
    if rate is None:
        raise UserError(f"{result.name} has no rate; evaluate it first")
    points = published(paper_codec(result), dataset)
    return min(points, key=lambda point: abs(_ratio(point.value("bpp_estimate"), rate)))


def _ratio(one: float | None, other: float) -> float:
    assert one is not None
    return max(one / other, other / one)


def _metrics(results: Sequence[Result], dataset: str) -> list[str]:
    columns = ("bpp_estimate", *FIGURES)
    head = ["run", "published point", *(f"{name}: run, paper" for name in columns)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for result in results:
        point = nearest(result, dataset)
        pairs = [f"{_text(result, name)}, {_text(point, name)}" for name in columns]
        lines.append("| " + " | ".join([result.name, point.name, *pairs]) + " |")
    return [
        f"Beside the paper's points on {dataset} (likelihood rates, full size). Values compare only where the",
        f"images are {dataset}'s; those of a run are over its own images.",
        "",
        *lines,
    ]


def _text(result: Result, name: str) -> str:
    value = result.value(name)
    if value is None:
        return "-"
    metric = find_metric(name)
    return f"{value:.4f}" if name == "bpp_estimate" or metric is None else metric.text(value)


def _costs(results: Sequence[Result]) -> list[str]:
    lines = ["| run | encode parameters: run, paper | encode MACs/px: run, paper |", "|---|---|---|"]
    for result in results:
        parameters, macs = PAPER_ENCODE[paper_codec(result)]
        own = [
            (result.costs or {}).get(key, {}).get("encode") for key in ("encoder_parameters", "encoder_macs_per_pixel")
        ]
        cells = ["-" if value is None else f"{value:,.0f}" for value in own]
        lines.append(f"| {result.name} | {cells[0]}, {parameters:,.0f} | {cells[1]}, {macs:,.0f} |")
    return lines


# ---------------------------------------------------------------------- settings


def _settings(results: Sequence[Result]) -> list[str]:
    lines: list[str] = []
    for result in results:
        file = result.folder / "config.yaml" if result.folder else None
        if file is None or not file.is_file():
            continue
        config = yaml.safe_load(file.read_text())
        stage = paper_stage(config)
        found = differences(config, paper_config(stage, config))
        lines += ["", f"{result.name}: settings that differ from `experiments/paper/{stage}.yaml`"]
        lines += ["", "| setting | run | paper |", "|---|---|---|"] if found else [": none"]
        lines += [f"| {key} | {own} | {theirs} |" for key, own, theirs in found]
    return lines


def paper_stage(config: dict[str, Any]) -> str:
    """The paper's experiment that a run's config is next to: by its system, its adversary and its crops."""
    settings = config["model"]["init_args"]
    terms = read_objective(objective_settings(settings))
    teacher = config["model"]["class_path"].rsplit(".", 1)[-1] == "TeacherSystem"
    if not terms.keys() & {"adversarial", "edge_dists"}:
        stage = 1
    else:
        crop = ((config.get("data") or {}).get("init_args") or {}).get("crop_size", 0)
        stage = 3 if crop >= 1024 and not teacher else 2
    return f"{'me' if teacher else 'se'}_stage{stage}"


def paper_config(stage: str, config: dict[str, Any]) -> dict[str, Any]:
    """The resolved experiment of the paper at the lambda of a run, where lambda is free (from stage 2 on)."""
    rate = read_objective(objective_settings(config["model"]["init_args"])).get("rate")
    overrides = [f"vars.lambda={rate.weight:g}"] if rate and "stage1" not in stage else []
    return load_config([Path("experiments/paper") / f"{stage}.yaml"], overrides)


def differences(config: dict[str, Any], paper: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(setting, run's value, paper's) where the two differ: terms of the loss, what the paper's file sets of codec,
    decoder, optimization and data, images per update, steps, precision, and what a run starts from, by kind."""
    rows = [*_terms(config, paper)]
    ours, theirs = (_flat(c) for c in (config, paper))
    for key, value in theirs.items():
        if key.startswith(_COMPARED) and not any(part in _MACHINES for part in key.split(".")):
            rows.append((key.replace("init_args.", ""), ours.get(key, "not given"), value))
    for name, of in (
        ("images per update", _images_per_update), ("trainer.max_steps", lambda c: _trainer(c, "max_steps")),
        ("trainer.precision", lambda c: _trainer(c, "precision")), ("starts from", _start), ("system", _system),
    ):  # fmt: skip
        rows.append((name, str(of(config)), str(of(paper))))
    return [row for row in rows if row[1] != row[2]]


def _terms(config: dict[str, Any], paper: dict[str, Any]) -> list[tuple[str, str, str]]:
    ours, theirs = (read_objective(objective_settings(c["model"]["init_args"])) for c in (config, paper))
    names = dict.fromkeys([*theirs, *ours])
    return [(f"objective.{name}", _entry(ours.get(name)), _entry(theirs.get(name))) for name in names]


def _entry(entry: Entry | None) -> str:
    if entry is None:
        return "-"
    arguments = {name: value for name, value in entry.arguments.items() if value is not None}
    more = [f"warmup_steps {entry.warmup_steps}"] if entry.warmup_steps else []
    return ", ".join([f"{entry.weight:g}", *more, *(f"{name} {value}" for name, value in sorted(arguments.items()))])


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}{key}.").items()}
    return {prefix[:-1]: _number(value)}


def _number(value: Any) -> str:
    """Numbers in one spelling, inside of lists too: 8 and 8.0 are equal."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(_number(item) for item in value)}]"
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _trainer(config: dict[str, Any], key: str) -> Any:
    return (config.get("trainer") or {}).get(key) or ("32-true" if key == "precision" else "not given")


def _images_per_update(config: dict[str, Any]) -> Any:
    batch = ((config.get("data") or {}).get("init_args") or {}).get("batch_size")
    optimization = config["model"]["init_args"].get("optimization") or {}
    devices = _trainer(config, "devices")
    processes = devices if isinstance(devices, int) and devices > 0 else 1
    return "not given" if batch is None else batch * int(optimization.get("accumulate") or 1) * processes


def _start(config: dict[str, Any]) -> str:
    settings = config["model"]["init_args"]
    if settings.get("init_from"):
        return "an earlier stage"
    if settings.get("receiver_from"):
        return "a teacher's receiver"
    return "SD-Turbo" if (settings.get("decoder") or {}).get("pretrained") else "random weights"


def _system(config: dict[str, Any]) -> str:
    return config["model"]["class_path"].rsplit(".", 1)[-1]
