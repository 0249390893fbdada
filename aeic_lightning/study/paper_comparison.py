"""Runs beside the paper: their rates and metrics beside the published points, and what their configs do differently."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from aeic_lightning.config import flat, load_config
from aeic_lightning.errors import UserError
from aeic_lightning.losses.objective import SHIPPED, Entry, objective_settings, read_objective
from aeic_lightning.metrics.table import find_metric
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import DecoderConfig, PretrainedConfig
from aeic_lightning.own_classes import arguments_of, class_or_none
from aeic_lightning.study.complexity import PAPER_ENCODE
from aeic_lightning.study.paper_points import published
from aeic_lightning.study.results import Result
from aeic_lightning.systems import OptimizationConfig

FIGURES = ("lpips_alex", "dists", "fid", "psnr")

# Settings that decide nothing of what is trained: places, names, and how the work is spread over machines. What a run
# starts from, its teacher and its batches are compared by kind.
_LEFT_OUT = {
    "model": {"objective", "labels", "init_from", "receiver_from", "teacher", "share_base", "teacher_cache",
              "write_streams"},
    "codec": set(),
    "decoder": {"pretrained.unet", "pretrained.vae", "gradient_checkpointing", "tiling"},
    "optimization": {"accumulate", "compile", "cuda_graph", "shard_base"},
    "data": {"train_dir", "val_dir", "test_dir", "batch_size", "num_workers", "worker_timeout", "pin_memory", "cache",
             "on_device", "seed"},
}  # fmt: skip
_ABSENT = "-"


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
    """(setting, run's value, paper's) where the two differ, whichever of them sets it.

    Compared are the terms of the loss, all settings of codec, decoder, optimization, system and data (what a config
    leaves out has its default), images per update, steps, precision, and what a run starts from, by kind.
    """
    rows = _terms(config, paper)
    ours, theirs = _settings_of(config), _settings_of(paper)
    for key in dict.fromkeys([*theirs, *ours]):
        rows.append((key, ours.get(key, _ABSENT), theirs.get(key, _ABSENT)))
    for name, of in (
        ("data", lambda c: _class(c["data"]) if c.get("data") else _ABSENT),
        ("images per update", _images_per_update), ("trainer.max_steps", lambda c: _trainer(c, "max_steps")),
        ("trainer.precision", lambda c: _trainer(c, "precision")), ("starts from", _start),
        ("system", lambda c: _class(c["model"])),
    ):  # fmt: skip
        rows.append((name, str(of(config)), str(of(paper))))
    return [row for row in rows if row[1] != row[2]]


def _settings_of(config: dict[str, Any]) -> dict[str, str]:
    """All settings that are compared one by one, defaults included, in words."""
    settings, data = config["model"]["init_args"], config.get("data") or {}
    given = settings.get("codec") or {}
    known = {name: value for name, value in given.items() if name in CodecConfig.__dataclass_fields__}
    parts = {
        "codec": dict(given) | asdict(CodecConfig(**known)),  # which knows what a part of one's own stands in place of
        "decoder": _complete(DecoderConfig, settings.get("decoder") or {}),
        "optimization": _complete(OptimizationConfig, settings.get("optimization") or {}),
    }
    system = _with_defaults(config["model"]["class_path"], {k: v for k, v in settings.items() if k not in parts})
    own = _with_defaults(data["class_path"], data.get("init_args") or {}) if data else {}
    found = {f"model.{name}.{key}": value for name, part in parts.items() for key, value in _compared(name, part)}
    found |= {f"model.{key}": value for key, value in _compared("model", system)}
    return found | {f"data.{key}": value for key, value in _compared("data", own)}


def _compared(section: str, settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in _flat(settings).items():
        parts = key.split(".")
        if not any(".".join(parts[:end]) in _LEFT_OUT[section] for end in range(1, len(parts) + 1)):
            yield key, value


def _complete(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config class with the defaults of those that are not given, in nested ones too."""
    settings = asdict(kind())
    nested = {"pretrained": PretrainedConfig}  # None by default
    for name, value in given.items():
        default = asdict(nested[name]()) if name in nested else settings.get(name)
        settings[name] = default | value if isinstance(default, dict) and isinstance(value, dict) else value
    return settings


def _with_defaults(class_path: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a class with their defaults; those given alone where the class is not there."""
    known = {name: p.default for name, p in arguments_of(class_or_none(class_path)).items() if p.default is not p.empty}
    return known | dict(given)


def _terms(config: dict[str, Any], paper: dict[str, Any]) -> list[tuple[str, str, str]]:
    ours, theirs = (read_objective(objective_settings(c["model"]["init_args"])) for c in (config, paper))
    names = dict.fromkeys([*theirs, *ours])
    return [(f"objective.{name}", _entry(ours.get(name)), _entry(theirs.get(name))) for name in names]


def _entry(entry: Entry | None) -> str:
    """A term's weight, and what else of it is not the default."""
    if entry is None:
        return _ABSENT
    defaults = {name: p.default for name, p in arguments_of(entry.kind).items()}
    arguments = {name: value for name, value in sorted(entry.arguments.items()) if value != defaults.get(name)}
    if entry.kind is not SHIPPED.get(entry.name, (None,))[0]:
        arguments = {"class": entry.kind.__name__} | arguments
    more = [f"warmup_steps {entry.warmup_steps}"] if entry.warmup_steps else []
    more += [f"share {entry.share:g}"] if entry.share != 1 else []
    return ", ".join([f"{entry.weight:g}", *more, *(f"{name} {_number(value)}" for name, value in arguments.items())])


def _flat(settings: dict[str, Any]) -> dict[str, str]:
    """Nested settings by their path, in words; None, and a part that is not there, are the same."""
    return {key: _ABSENT if value in (None, {}) else _number(value) for key, value in flat(settings).items() if key}


def _number(value: Any) -> str:
    """Numbers in one spelling, inside of lists too: 8 and 8.0 are equal."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(_number(item) for item in value)}]"
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _trainer(config: dict[str, Any], key: str) -> Any:
    return (config.get("trainer") or {}).get(key) or ("32-true" if key == "precision" else _ABSENT)


def _images_per_update(config: dict[str, Any]) -> Any:
    batch = ((config.get("data") or {}).get("init_args") or {}).get("batch_size")
    optimization = config["model"]["init_args"].get("optimization") or {}
    devices = _trainer(config, "devices")
    processes = devices if isinstance(devices, int) and devices > 0 else 1
    return _ABSENT if batch is None else batch * int(optimization.get("accumulate") or 1) * processes


def _start(config: dict[str, Any]) -> str:
    settings = config["model"]["init_args"]
    if settings.get("init_from"):
        return "an earlier stage"
    if settings.get("receiver_from"):
        return "a teacher's receiver"
    return "SD-Turbo" if (settings.get("decoder") or {}).get("pretrained") else "random weights"


def _class(part: dict[str, Any]) -> str:
    return part["class_path"].rsplit(".", 1)[-1]
