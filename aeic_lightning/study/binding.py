"""Whether student and teacher of a distillation fit, before a run starts: both on the meta device, without weights.

`plan` binds one experiment. A sweep binds all of its runs before the first one starts, where a teacher may be a run of
the same sweep, of which there is a config and no checkpoint yet.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from aeic_lightning.checkpoints.checkpoint import from_dict, model_configs, read_checkpoint
from aeic_lightning.errors import UserError
from aeic_lightning.files import locate, require_model
from aeic_lightning.losses.objective import Entry, objective_settings, read_objective
from aeic_lightning.losses.tap_term import TapTerm
from aeic_lightning.losses.term import Term
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import DecoderConfig
from aeic_lightning.own_classes import class_or_none
from aeic_lightning.study.sweep_file import Run
from aeic_lightning.systems import CompressionSystem, DistillationSystem, OnlineDistillationSystem
from aeic_lightning.systems.teachers import check_levels, check_read


def bind(config: dict[str, Any], student: AEIC, teacher: AEIC | None) -> dict[str, Term]:
    """The terms of an experiment that read taps, by name, bound to its models.

    Where the experiment has a teacher that is not there yet, the terms are bound to nothing and only the student's taps
    are looked for. The average of the student, the teacher of self-distillation, has the student's taps.

    Raises UserError for what `fit` refuses: no term that reads the teacher, no teacher for a term, a tap that either
    model lacks or that has another stride in the other, other rate levels.
    """
    settings = config["model"]["init_args"]
    system = class_or_none(config["model"]["class_path"])
    entries = read_objective(objective_settings(settings))
    with torch.device("meta"):
        terms = {name: entry.build() for name, entry in entries.items() if _reads_taps(entry)}
    online = system is not None and issubclass(system, OnlineDistillationSystem)
    distils = online or (system is not None and issubclass(system, DistillationSystem))
    if online and teacher is None:
        teacher = student
    if teacher is not None:
        check_levels(student, teacher, str(settings.get("teacher") or "of the same run"))
    for term in terms.values():
        if distils and teacher is None:
            if isinstance(term, TapTerm):
                term.find_student_taps(student)
        else:
            with torch.device("meta"):
                term.bind(student, teacher)
    if distils and (teacher is not None or not terms):
        check_read([tap for term in terms.values() for tap in term.teacher_taps], _otherwise(online))
    return terms


def _otherwise(online: bool) -> str:
    return "TeacherSystem" if online else "StudentSystem"


def _reads_taps(entry: Entry) -> bool:
    """Whether a term's class reads taps. The others are not built: that may need the weights of a frozen network."""
    return any(
        getattr(entry.kind, name) is not getattr(Term, name) for name in ("bind", "student_taps", "teacher_taps")
    )


# ---------------------------------------------------------------------- models


def teacher_of(path: str) -> AEIC:
    """The model of a checkpoint, without its weights. Raises UserError where it cannot be read."""
    return on_meta(*model_configs(read_checkpoint(path, "teacher", mmap=True), path))


def online_teacher(settings: dict[str, Any], student: AEIC) -> AEIC:
    """The teacher that is trained beside a student."""
    return on_meta(from_dict(CodecConfig, settings["teacher_codec"]), student.decoder.config)


def on_meta(codec: CodecConfig, decoder: DecoderConfig) -> AEIC:
    """A model without weights."""
    with torch.device("meta"):
        return AEIC(codec, decoder)


@lru_cache(maxsize=32)  # runs of a sweep have few sizes
def _built(sizes: str) -> AEIC:
    read = json.loads(sizes)
    return on_meta(from_dict(CodecConfig, read["codec"]), from_dict(DecoderConfig, read["decoder"]))


def _sizes(settings: Mapping[str, Any]) -> str:
    return json.dumps({name: settings[name] for name in ("codec", "decoder")})


# ---------------------------------------------------------------------- sweeps


def bind_runs(runs: list[Run], configs: dict[str, dict[str, Any]]) -> None:
    """Bind every run of a sweep that is not done. Raises UserError, naming the run, for the first that `fit` refuses.

    Args:
        runs: all runs of the sweep.
        configs: the resolved config of each, by name.
    """
    bound: set[str] = set()
    for run in runs:
        model = configs[run.name].get("model") or {}
        settings = model.get("init_args") or {}
        system = class_or_none(model.get("class_path"))
        if run.done or system is None:  # which the run itself says
            continue
        try:
            _find_starts(run, settings, runs)
            if issubclass(system, CompressionSystem) and {"codec", "decoder"} <= settings.keys():
                _bind_run(configs[run.name], runs, configs, bound)
        except (UserError, TypeError) as error:
            raise UserError(f"{run.name}: {error}") from error


def _find_starts(run: Run, settings: Mapping[str, Any], runs: list[Run]) -> None:
    """Raise UserError where a run would start from, or learn from, a file that no run of the sweep will write."""
    starts = () if run.has_trained or run.start else ("init_from", "receiver_from")
    for key in (*starts, "teacher"):
        path = settings.get(key)
        if isinstance(path, str) and _writer(path, runs) is None:
            require_model(path, key)


def _bind_run(config: dict[str, Any], runs: list[Run], configs: dict[str, dict[str, Any]], bound: set[str]) -> None:
    settings = config["model"]["init_args"]
    path = settings.get("teacher")
    writer = _writer(path, runs) if path else None
    theirs = _sizes(configs[writer.name]["model"]["init_args"]) if writer else str(path)
    # The same sizes with the same terms, once.
    terms = {name: value for name, value in objective_settings(settings).items() if value}
    key = json.dumps([config["model"]["class_path"], _sizes(settings), theirs, settings.get("teacher_codec"), terms])
    if key in bound:
        return
    student = _built(_sizes(settings))
    if settings.get("teacher_codec"):
        teacher = online_teacher(settings, student)
    elif path:
        teacher = _built(theirs) if writer else teacher_of(path)
    else:
        teacher = None
    bind(config, student, teacher)
    bound.add(key)


def _writer(path: str, runs: list[Run]) -> Run | None:
    """The run of the sweep in whose folder a file lies."""
    place = locate(path).resolve()
    return next((run for run in runs if place.is_relative_to(Path(run.folder).resolve())), None)
