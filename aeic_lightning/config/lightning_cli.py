"""LightningCLI on a resolved config."""

import logging
import pkgutil
import re
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any, get_args

import lightning
from jsonargparse import ArgumentError, set_dumper
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from aeic_lightning.config import as_yaml
from aeic_lightning.config.run_record import RunRecord
from aeic_lightning.errors import UserError, did_you_mean
from aeic_lightning.own_classes import arguments_of, class_or_none, public_names


class ValidateTheEnd(Callback):
    """Has the last step validated, whether or not `val_check_interval` divides the number of steps or exceeds it."""

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        # Lightning asks after this hook whether the batches so far are a multiple of it.
        if (
            trainer.max_steps > 0
            and trainer.global_step >= trainer.max_steps
            and trainer.check_val_every_n_epoch is None
        ):
            trainer.val_check_batch = trainer.fit_loop.epoch_loop.total_batch_idx + 1


class _Parser(LightningArgumentParser):
    """Takes a setting that names a file as it is. jsonargparse would read the file, each time that it checks the
    setting, in case it holds settings: a checkpoint of 1 GB as text, thirteen times."""

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        return super().add_class_arguments(*args, **kwargs | {"sub_configs": False})


class _CLI(LightningCLI):
    """Gives the UserError of a constructor as it was raised, and tells the trainer early what it resumes from.

    Handed to `fit` as an argument, the checkpoint would become known only after every `setup`; and LightningCLI would
    build the classes that the settings in the checkpoint name, in place of the config's.
    """

    ckpt_path: str | None = None

    def after_instantiate_classes(self) -> None:
        self.trainer.callbacks.insert(0, ValidateTheEnd())  # pyright: ignore[reportAttributeAccessIssue] (a connector sets it)
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
    "parser_class": _Parser,
    "parser_kwargs": {"exit_on_error": False},
}


def run_lightning(
    subcommand: str,
    config: dict[str, Any],
    print_config: str | None = None,
    describe: Callable[[dict, dict], dict] | None = None,
) -> None:
    """Run a subcommand of LightningCLI. Raises UserError for settings that it does not accept.

    `describe` is what `RunRecord` asks for what a run says of itself.
    """
    options: dict[str, Any] = OPTIONS | {"save_config_kwargs": OPTIONS["save_config_kwargs"] | {"describe": describe}}
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero",
                 "lightning.fabric.utilities.seed"):  # fmt: skip
        logging.getLogger(name).addFilter(_is_news)
    # Said for a run that is as intended: manual optimization saves after the step, and data loading is our choice.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # what is frozen is meant to be
    # The config is handed over resolved; the words of the command line have been read already.
    warnings.filterwarnings("ignore", ".*LightningCLI's args parameter.*")
    path = None if print_config is not None else config.pop("ckpt_path", None)
    # The parser of every other subcommand takes as long to build as the one of this, and reads nothing.
    only_this = {subcommand: LightningCLI.subcommands()[subcommand]}
    cli = type("CLI", (_CLI,), {"ckpt_path": path, "subcommands": staticmethod(lambda: only_this)})
    try:
        if print_config is None:
            cli(args={"subcommand": subcommand, subcommand: config}, **options)
            return
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(as_yaml(config))
            file.flush()
            cli(args=[subcommand, "--config", file.name, f"--print_config={print_config}"], **options)
    except ArgumentError as error:
        raise user_error(error) from error
    except MisconfigurationException as error:
        raise UserError(in_our_words(" ".join(str(error).split()))) from error
    except SystemExit as stop:
        # Lightning makes a SystemExit(1) of Ctrl-C.
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise stop.__context__ from None
        raise


MANUAL = {
    "gradient_clip_val": "optimization.gradient_clip, which clips each player by itself",
    "accumulate_grad_batches": "optimization.accumulate, which counts for both players",
}
"""Settings of the trainer that Lightning refuses for systems with two players, and what there is instead."""


def in_our_words(said: str) -> str:
    """What Lightning says of a setting, or what to set in its place."""
    found = next((name for name in MANUAL if name in said), None)
    return said if found is None else f"trainer.{found} does nothing in this system; set {MANUAL[found]}"


NO_NEWS = re.compile(r"💡|(GPU|TPU|IPU|HPU|MPS) available|Seed set to|`Trainer.fit` stopped")
"""What Lightning logs in every run: advertisements, devices that are not there, and what the progress shows."""


def _is_news(record: logging.LogRecord) -> bool:
    return not NO_NEWS.match(record.getMessage())


# ---------------------------------------------------------------------- what is wrong with a setting

# jsonargparse says which word it does not know, some levels down in a chain of exceptions; what it would have known
# follows from the signatures of the classes that the config names.

SECTIONS = ("model", "data", "trainer", "seed_everything", "ckpt_path", "vars", "include")
PACKAGES = ("aeic_lightning", "callbacks", "datamodules", "lightning", "torch", "torchmetrics")


def user_error(error: BaseException) -> UserError:
    """The UserError inside of jsonargparse's wrapping, or one made of the innermost reason."""
    chain = [error]
    while not isinstance(chain[-1], UserError) and (inner := chain[-1].__cause__ or chain[-1].__context__):
        chain.append(inner)
    reason = chain[-1]
    if isinstance(reason, UserError):
        return reason
    texts = [str(link) for link in chain]
    # The outermost exception tells the section, the innermost the setting within it.
    keys = list(dict.fromkeys(key for text in texts for key in re.findall(r'[Kk]ey "([\w.]+)"', text)))
    classes = re.findall(r"given class_path '([\w.]+)'", "\n".join(texts))
    where = ".init_args.".join(keys[:1] + keys[-1:] if len(keys) > 1 else keys)
    message = " ".join(texts[-1].split())
    message = re.sub(r"typing\.Literal\[([^]]*)\]", r"value among \1", re.sub(r"<class '(\w+)'>", r"\1", message))
    hint = _hint(message, classes[-1] if classes else None)
    return UserError((f"{where}: " if where and where not in message else "") + message + hint)


def _hint(message: str, class_path: str | None) -> str:
    if match := re.search(r"(?:Group '(\w+)' does not accept option|[Oo]ption) '([\w.]+)'", message):
        group, path = match[1], match[2].split(".")
        if class_path is None:
            section, name = (group, path[-1]) if group else (path[0], path[-1])
            return (
                did_you_mean(name, arguments_of(lightning.Trainer))
                if section == "trainer"
                else (did_you_mean(section, SECTIONS))
            )
        kind = class_or_none(class_path)
        for step in ([group] if group else []) + path[:-1]:
            parameter = arguments_of(kind).get(step)
            kind = _dataclass(parameter.annotation) if parameter else None
        return did_you_mean(path[-1], arguments_of(kind))
    if match := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message):
        return did_you_mean(match[2], public_names(import_module(match[1])))
    if match := re.search(r"No module named '([\w.]+)'", message):
        parent, _, name = match[1].rpartition(".")
        if not parent:
            return did_you_mean(name, PACKAGES)
        return did_you_mean(name, [module.name for module in pkgutil.iter_modules(import_module(parent).__path__)])
    return ""


def _dataclass(kind: Any) -> Any:
    """The dataclass in `Config` or `Config | None`."""
    return next((part for part in (kind, *get_args(kind)) if is_dataclass(part)), None)
