"""What makes two runs the same experiment: their composed settings, but for the seed, paths and the rate.

Runs that agree in these may be pooled as seeds of one curve. Runs that do not are different experiments, whatever their
labels say (`study.group`).
"""

import re
from pathlib import PurePath
from typing import Any

from aeic_lightning.config import flat

Settings = dict[str, str]
"""Setting -> its value as text; a setting that has no value is left out."""

RATE = re.compile(r"(objective|loss)\.rate(\.weight|\.target)?|optimization\.level")
SEED = re.compile(r"(.*\.)?seed(_everything)?")
# What changes how a run is shown, stored or fed, but not what it computes.
ASIDE = re.compile(
    r"labels\..*|write_streams|teacher_cache|ckpt_path|weights_only|data\.(num_workers|pin_memory|prefetch\w*|persistent\w*)"
    r"|trainer\.(logger|default_root_dir|enable_\w+|log_every_n_steps|num_sanity_val_steps|profiler|fast_dev_run)(\..*)?"
    r"|trainer\.(val_check_interval|check_val_every_n_epoch|limit_\w+_batches|barebones)"
)
CALLBACK = re.compile(r"(trainer\.callbacks\.\d+)\.(.*)")
FROM = re.compile(r"(init_from|receiver_from|teacher)(\.path)?")
LATER = {"codec.by_rows": False}
"""Settings that older runs do without, and the value that says the same: runs of before and after pool."""
OVERRIDDEN = ("trainer.max_steps", "trainer.max_epochs")
"""Limits of a run that was extended: the last one counts."""


def experiment_settings(config: dict[str, Any], record: dict[str, Any] | None = None) -> Settings:
    """The settings of a run that tell experiments apart.

    Args:
        config: the run's `config.yaml`.
        record: its `run.json`: what a resume changed, and the digests of the user's own classes and of data folders.
    """
    values = flat(config, lists=True)
    ours = _own_callbacks(values)
    values = {key: value for key, value in values.items() if value is not None and value is not LATER.get(_short(key))}
    found = {_short(key): _text(key, value) for key, value in values.items() if _counts(key, ours)}
    record = record or {}
    found |= {f"source of {module}": digest[:12] for module, digest in (record.get("sources") or {}).items()}
    found |= {f"files of {_short(key)}": digest[:12] for key, digest in (record.get("data_files") or {}).items()}
    for resumed in record.get("resumed") or []:
        for key, (_, now) in (resumed.get("changed") or {}).items():
            if not _counts(key, ours):
                continue
            name, text = _short(key), _text(key, now)
            found[name] = text if key in OVERRIDDEN else f"{found.get(name)}, from step {resumed.get('step')} on {text}"
    return found


def _own_callbacks(values: dict[str, Any]) -> set[str]:
    """Callbacks that are not this project's or Lightning's, and may do anything."""
    paths = {
        match[1]: value
        for key, value in values.items()
        if (match := CALLBACK.fullmatch(key)) and match[2] == "class_path"
    }
    return {place for place, path in paths.items() if not str(path).startswith(("callbacks.", "lightning."))}


def _counts(key: str, callbacks: set[str]) -> bool:
    if match := CALLBACK.fullmatch(key):
        return match[1] in callbacks
    name = _short(key)
    return not (RATE.fullmatch(name) or SEED.fullmatch(name) or ASIDE.fullmatch(name))


def _short(key: str) -> str:
    """`model.init_args.objective.L_enc.init_args.taps` -> `objective.L_enc.taps`."""
    return key.replace(".init_args", "").removeprefix("model.")


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or "/" not in value:
        return str(value)
    # Where a file lies is none of an experiment; that there is one is, and so is the name of a data set.
    return "a file" if FROM.fullmatch(_short(key)) or value.endswith(".ckpt") else PurePath(value).name
