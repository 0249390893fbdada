"""What a model card says beside the weights: how they were trained, on what, and what they reach."""

from pathlib import Path
from typing import Any

import yaml

from aeic_lightning.checkpoints.checkpoint import read_checkpoint
from aeic_lightning.errors import UserError
from aeic_lightning.files import locate
from aeic_lightning.losses.objective import objective_settings
from aeic_lightning.metrics.table import find_metric
from aeic_lightning.run_folder import read_record
from aeic_lightning.study.evaluate import run_config
from aeic_lightning.study.results import Result, read_results

Card = dict[str, str | list[str]]


def card(
    checkpoint: str | Path, before: Card, entries: Path | None, results: Path | None, name: str
) -> dict[str, str | list[str]]:
    """The entries of a model card, in order.

    Args:
        checkpoint: what is exported. Of a run's checkpoint the card names steps, command and code.
        before: entries that the weights have already.
        entries: a YAML file of more of them, each a line or a list of lines. They replace those of the same name.
        results: a file of results whose metrics are listed: those of the model `name`, or all if none bears its name.

    Raises UserError for a file that is none of these.
    """
    made = before | _training(locate(checkpoint)) | (_entries(entries) if entries else {})
    if results:
        found = read_results([results])
        named = [result for result in found if result.name.split(" at ")[0] == name]
        made["figures"] = [_line(result) for result in named or found]
    return made


def realistic(checkpoint: str | Path) -> Card:
    """The entry on the training of a second decoder, of realistic pictures; empty where the checkpoint has no run."""
    known = _training(locate(checkpoint))
    return {"realistic decoder": [f"{known['command']}, {known['steps']} steps"]} if "command" in known else {}


def objective(checkpoint: str | Path) -> dict[str, Any] | None:
    """The objective that a run's checkpoint was trained on, as its `config.yaml` has it; None where there is no run."""
    path = locate(checkpoint)
    config = None if path.is_dir() else run_config(path.resolve().parent.parent)
    return objective_settings(config["model"]["init_args"]) if config else None


def _training(path: Path) -> Card:
    if path.is_dir():
        return {}
    made: Card = {}
    if step := read_checkpoint(path).get("global_step"):
        made["steps"] = str(step)
    if run := read_record(path.resolve().parent.parent):
        made["command"] = f"`{run['command']}`"
        made["code"] = (
            f"aeic_lightning {run['versions']['aeic_lightning']}, commit {(run.get('git') or {}).get('commit')}"
        )
    return made


def _entries(path: Path) -> Card:
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"--card {path} cannot be read: {' '.join(str(error).split())}") from error
    lines = isinstance(found, dict) and all(
        isinstance(value, str) or (isinstance(value, list) and all(isinstance(line, str) for line in value))
        for value in found.values()
    )
    if not lines:
        raise UserError(f"--card {path}: write `name: a line of text`, or `name:` and a list of such lines")
    return {str(key): value for key, value in found.items()}


def _line(result: Result) -> str:
    words = [f"{result.value('bpp'):.4f} bpp" if result.value("bpp") else "no rate"]
    for name in result.metrics:
        metric, value = find_metric(name), result.value(name)
        if metric and value is not None:
            part = result.metric_info.get(name, {}).get("in_training")
            words.append(f"{metric.full} {metric.text(value)}" + (f" ({part})" if part and metric.backbone else ""))
    return f"{result.name}, {len(result.images)} images: " + "; ".join(words)
