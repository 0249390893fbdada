"""The record that every run folder keeps: what was run, with which settings and versions, and what a resume changed."""

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

from aeic_lightning import __version__
from aeic_lightning.config import flat
from aeic_lightning.files import write_whole
from aeic_lightning.own_classes import SOURCES, copy_sources, own_sources, source_digests
from aeic_lightning.provenance import command_line, folder_digest, git_state, package_versions, user_repository
from aeic_lightning.run_folder import read_record

Changes = dict[str, list[Any]]  # setting -> [before, now]


class RunRecord(SaveConfigCallback):
    """Writes into the run folder, before anything is trained: `config.yaml`, complete and resolved, and `run.json`.

    `run.json` holds the command, the versions, the seed, the git state and the machine, so that a result can be traced
    to what made it, and how many tensors warm starts took over (`started_from`). Both are of the beginning of the run:
    a resume adds an entry to the list `resumed` in `run.json` with the same facts, its step and the settings that
    differ (`resumed_from` is of the last one). Where any do, it says so, and keeps its own config as
    `config_step_XXXXXXX.yaml`.

    The user's own classes are copied into `sources/`, and their digests are in `run.json`. Those that a resume finds
    edited are copied into `sources_step_XXXXXXX/`, and count as a setting that differs. `data_files` are digests of the
    folders that the data settings name: of paths and sizes.

    `validate`, `test` and `predict` write `config_validate.yaml`, `run_validate.json`, and so on.

    Args:
        describe: from config and record to what is written as `experiment`: what the run says of itself to whoever
            reads its results.
    """

    def __init__(self, *args: Any, describe: Callable[[dict, dict], dict] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.describe = describe

    def save_config(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        stage = TrainerFn(stage).value  # Lightning hands over a member of the enumeration
        record = self._record(trainer, stage)
        if stage != "fit":
            self._save_config(folder / f"config_{stage}.yaml")
            _write(folder / f"run_{stage}.json", record)
            return
        if (before := _of_beginning(folder)) and trainer.ckpt_path and _lies_in(trainer.ckpt_path, folder):
            self._resume(trainer.ckpt_path, folder, before, record)
            return
        self._save_config(folder / "config.yaml")
        record |= {"sources": _keep_sources(folder / "config.yaml", folder / SOURCES)}
        record |= {"data_files": _data_files(folder / "config.yaml")}
        _write(folder / "run.json", self._described(folder, record))

    def _described(self, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
        if self.describe is None:
            return record
        return record | {"experiment": self.describe(_read(folder / "config.yaml"), record)}

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Add what warm starts took over, which is known by now."""
        file = Path(trainer.default_root_dir) / "run.json"
        if (started := getattr(pl_module, "started_from", None)) and file.is_file():
            _write(file, json.loads(file.read_text()) | {"started_from": started})

    def _resume(self, start: str | Path, folder: Path, before: dict[str, Any], record: dict[str, Any]) -> None:
        step = torch.load(start, map_location="cpu", weights_only=True, mmap=True)["global_step"]
        own = folder / f"config_step_{step:07d}.yaml"
        self._save_config(own)
        changed = _changes(folder / "config.yaml", own)
        kept = folder / f"{SOURCES}_step_{step:07d}"
        sources, earlier = _keep_sources(own, kept), before.get("sources") or {}
        edited = {name: [earlier[name], now] for name, now in sources.items() if earlier.get(name, now) != now}
        if not edited:
            shutil.rmtree(kept, ignore_errors=True)
        record |= {"sources": sources}
        changed |= {f"source of {name}": [old[:12], now[:12]] for name, (old, now) in edited.items()}
        if changed:
            settings = ", ".join(f"{key} {before} -> {now}" for key, (before, now) in changed.items())
            print(
                f"warning: from step {step} on with other settings than the run began with: {settings}. "
                f"Recorded in {folder / 'run.json'} and {own.name}", file=sys.stderr, flush=True,
            )  # fmt: skip
        else:
            own.unlink()
        resumed = [*before.get("resumed", []), {"step": step, "changed": changed} | record]
        now = before | {"resumed": resumed, "resumed_from": record["resumed_from"]}
        _write(folder / "run.json", self._described(folder, now))

    def _save_config(self, path: Path) -> None:
        beside = path.with_name(f".{path.name}.part.yaml")
        self.parser.save(self.config, beside, skip_none=False, overwrite=True, multifile=False, skip_validation=True)
        os.replace(beside, path)

    def _record(self, trainer: lightning.Trainer, stage: str) -> dict[str, Any]:
        return {
            "command": command_line(),
            "stage": stage,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seed": self.config.get("seed_everything"),
            "determinism": {
                "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
                "cudnn_deterministic": torch.backends.cudnn.deterministic,
                "cudnn_benchmark": torch.backends.cudnn.benchmark,
                "float32_matmul_precision": torch.get_float32_matmul_precision(),
                "precision": trainer.precision,
                "networks_in_bfloat16": stage == "fit" and getattr(trainer.lightning_module, "in_bfloat16", False),
                "threads": torch.get_num_threads(),
                "processes": trainer.world_size,
            },
            "resumed_from": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
            "git": git_state(),
            "user_repository": user_repository(),
            "versions": {"aeic_lightning": __version__, "python": platform.python_version()}
            | package_versions()
            | {"torch": torch.__version__},
            "machine": {
                "processor": platform.processor() or platform.machine(),
                "device": str(trainer.strategy.root_device),
            },
        }


def _keep_sources(config: Path, target: Path) -> dict[str, str]:
    """Copy the user's own classes of a config into `target`; returns their digests by module."""
    sources = own_sources(_read(config))
    copy_sources(sources, target)
    return source_digests(sources)


def _data_files(config: Path) -> dict[str, str]:
    """The digest of each folder of images that a config names, by its setting."""
    values = flat({"data": _read(config).get("data") or {}}, lists=True)
    folders = {key: Path(value).expanduser() for key, value in values.items() if isinstance(value, str)}
    return {key: folder_digest(folder) for key, folder in folders.items() if folder.is_dir()}


def _changes(beginning: Path, now: Path) -> Changes:
    """Settings in which two configs differ; the place of the run folder, which may have been moved, is none."""
    configs = [_read(path) for path in (beginning, now)]
    folders = [str((config.get("trainer") or {}).get("default_root_dir")) for config in configs]
    before, after = (
        {
            key: value.replace(own, "RUN") if isinstance(value, str) else value
            for key, value in flat(config, lists=True).items()
        }
        for config, own in zip(configs, folders, strict=True)
    )
    ignored = ("ckpt_path", "weights_only")
    keys = [key for key in {**before, **after} if key not in ignored and before.get(key) != after.get(key)]
    return {key: [before.get(key), after.get(key)] for key in keys}


def _read(config: Path) -> Any:
    return yaml.load(config.read_text(), Loader=yaml.CSafeLoader)


def _of_beginning(folder: Path) -> dict[str, Any] | None:
    """`run.json` of a run whose config is there too."""
    return read_record(folder) if (folder / "config.yaml").is_file() else None


def _lies_in(checkpoint: str | Path, folder: Path) -> bool:
    return Path(checkpoint).resolve().is_relative_to(folder.resolve())


def _write(path: Path, record: dict[str, Any]) -> None:
    write_whole(path, json.dumps(record, indent=2) + "\n")
