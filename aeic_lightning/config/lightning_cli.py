"""LightningCLI on a resolved config, and the record that every run folder keeps."""

import json
import os
import platform
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import torch
from jsonargparse import ArgumentError, set_dumper
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from aeic_lightning import __version__
from aeic_lightning.config import as_yaml
from aeic_lightning.config.near_miss import user_error
from aeic_lightning.errors import UserError
from aeic_lightning.files import write_whole
from aeic_lightning.provenance import PACKAGES, command_line, git_state


class RunRecord(SaveConfigCallback):
    """Writes into the run folder, before anything is trained: `config.yaml`, complete and resolved, and `run.json`.

    `run.json` holds the command, the versions, the seed, the git state and the machine, so that a figure can be traced
    to what made it.
    """

    def save_config(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        name = "config.yaml" if stage == "fit" else f"config_{stage}.yaml"
        beside = folder / f".{name}.part.yaml"
        self.parser.save(self.config, beside, skip_none=False, overwrite=True, multifile=False, skip_validation=True)
        os.replace(beside, folder / name)
        record = {
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
                "threads": torch.get_num_threads(),
                "processes": trainer.world_size,
            },
            "resumed_from": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
            "git": git_state(),
            "versions": {"aeic_lightning": __version__, "python": platform.python_version()}
            | {name: version(name) for name in PACKAGES}
            | {"torch": torch.__version__},
            "machine": {
                "processor": platform.processor() or platform.machine(),
                "device": str(trainer.strategy.root_device),
            },
        }
        name = "run.json" if stage == "fit" else f"run_{stage}.json"
        write_whole(folder / name, json.dumps(record, indent=2) + "\n")


class _CLI(LightningCLI):
    """Gives the UserError of a constructor as it was raised, and tells the trainer early what it resumes from.

    Handed to `fit` as an argument, the checkpoint would become known only after every `setup`; and LightningCLI would
    build the classes that the settings in the checkpoint name, in place of the config's.
    """

    ckpt_path: str | None = None

    def after_instantiate_classes(self) -> None:
        if self.ckpt_path:
            self.trainer.ckpt_path = self.ckpt_path

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            raise user_error(error) from error


set_dumper("yaml", as_yaml)  # jsonargparse's own writes "1e3" without quotes, and reads it back as a number

OPTIONS: dict[str, Any] = {
    "model_class": lightning.LightningModule,
    "datamodule_class": lightning.LightningDataModule,
    "subclass_mode_model": True,
    "subclass_mode_data": True,
    "save_config_callback": RunRecord,
    "save_config_kwargs": {"overwrite": True, "save_to_log_dir": False},
    "parser_kwargs": {"exit_on_error": False},
}


def run_lightning(subcommand: str, config: dict[str, Any], print_config: str | None = None) -> None:
    """Run a subcommand of LightningCLI. Raises UserError for settings that it does not accept."""
    # Said for a run that is as intended: manual optimization saves after the step, and data loading is our choice.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    # The config is handed over resolved; the words of the command line have been read already.
    warnings.filterwarnings("ignore", ".*LightningCLI's args parameter.*")
    if print_config is not None:
        path = _write_temporary(config)
        _CLI(args=[subcommand, "--config", path, f"--print_config={print_config}"], **OPTIONS)
        return
    path = config.pop("ckpt_path", None)
    try:
        type("CLI", (_CLI,), {"ckpt_path": path})(args={"subcommand": subcommand, subcommand: config}, **OPTIONS)
    except ArgumentError as error:
        raise user_error(error) from error
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from error
    except SystemExit as stop:
        # Lightning makes a SystemExit(1) of Ctrl-C.
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise stop.__context__ from None
        raise


def _write_temporary(config: dict[str, Any]) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as file:
        file.write(as_yaml(config))
    return file.name
