"""`fit`, `validate`, `test`, `predict`: LightningCLI on a config that OmegaConf has resolved."""

import argparse
import contextlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aeic_lightning.checkpoints.peek import step_of
from aeic_lightning.config import load_config, parse_overrides, with_sources
from aeic_lightning.errors import UserError
from aeic_lightning.extras import require
from aeic_lightning.files import check_can_write
from aeic_lightning.output import add_json_argument, give_file
from aeic_lightning.run_folder import only_fit, settle_run_folder

EXAMPLES = """
any setting can be overridden, and the override reaches every value that refers to it:
  --vars.steps=200  --model.init_args.objective.mse=4  --trainer.callbacks=[]

examples:
  aeic-lightning fit --config experiments/tiny/teacher_stage1.yaml
  aeic-lightning fit --config experiments/tiny/teacher_stage1.yaml --vars.name=mine --vars.lambda=2
  aeic-lightning fit --config experiments/tiny/teacher_stage1.yaml --ckpt_path last
  aeic-lightning fit --config experiments/paper/se_stage2.yaml --dry-run    (the same as `plan`)
  aeic-lightning fit --config FILE --print_config=comments     every setting, with its meaning
  aeic-lightning fit --config FILE --print_config=sources      what is set, with the file that sets it
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The few arguments that are not settings of the experiment."""
    parser.epilog = EXAMPLES
    parser.usage = f"{parser.prog} --config FILE [--ckpt_path last|auto|FILE] [--section.name=value ...]"
    parser.add_argument("--config", action="append", required=True, help="experiment file; later ones win")
    parser.add_argument(
        "--ckpt_path",
        help="checkpoint to go on from; `last` is the run folder's own, `auto` is that or, without one, a new start",
    )
    if parser.prog.endswith(" fit"):
        parser.add_argument(
            "--dry-run", action="store_true", help="build on the meta device; print parameters, memory, what is missing"
        )
    if not parser.prog.endswith(" predict"):  # which has no figures
        add_json_argument(parser)
    parser.add_argument(
        "--print_config",
        nargs="?",
        const="",
        metavar="comments|sources",
        help="print the complete resolved config and exit; `sources`: what the files set, and which file does",
    )


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Build trainer, system and data from the config, and run the subcommand."""
    if args.print_config == "sources":
        print(with_sources(args.config, parse_overrides(extra)), end="")
        return 0
    if args.command == "fit" and _is_finished(args, extra):
        return 0
    config = load_config(args.config, parse_overrides(extra))
    require(args.command, "lightning", "jsonargparse", "torchmetrics", "sklearn", "tensorboard")
    if args.command == "fit" and args.dry_run:
        from aeic_lightning.cli.commands.plan import print_plan_of

        return print_plan_of(config, args)
    folder = settle_run_folder(config)
    _resolve_checkpoint(args, folder)
    if args.ckpt_path:
        config["ckpt_path"] = args.ckpt_path
        config["weights_only"] = True
    if args.print_config is None:
        _check_trainer(config["trainer"])
        _check_checkpoint(args, folder, config["trainer"])

    from aeic_lightning.config.lightning_cli import run_lightning
    from aeic_lightning.study.run_description import describe_run

    with contextlib.ExitStack() as stack:
        if args.print_config is None and config["trainer"].get("fast_dev_run"):
            # What callbacks write must not be left behind, and must not replace a run's own.
            config["trainer"]["default_root_dir"] = stack.enter_context(TemporaryDirectory())
        elif args.print_config is None:
            check_can_write(folder, folder=True)
            if args.command == "fit":
                stack.enter_context(only_fit(folder))
                _check_checkpoint(args, folder, config["trainer"])  # another process may have ended just now
                if _nothing_to_do(args, folder, config["trainer"]):
                    _give_figures(args, folder)
                    return 0
        run_lightning(args.command, config, args.print_config, describe_run)
        if args.print_config is None:
            _give_figures(args, Path(config["trainer"]["default_root_dir"]))
    return 0


def _is_finished(args: argparse.Namespace, extra: list[str]) -> bool:
    """Whether there is nothing to do, found before any class is imported, which takes seconds."""
    if not args.ckpt_path or args.dry_run or args.print_config is not None:
        return False
    config = load_config(args.config, parse_overrides(extra), classes="none")
    early = argparse.Namespace(**vars(args))
    folder = settle_run_folder(config)
    _resolve_checkpoint(early, folder)
    if not _nothing_to_do(early, folder, config["trainer"]):
        return False
    _give_figures(early, folder)
    return True


def _nothing_to_do(args: argparse.Namespace, folder: Path, trainer: dict[str, Any]) -> bool:
    """Say so where the folder's own checkpoint is of the last step: its validation is done, and all is written."""
    limit = trainer.get("max_steps")
    if not args.ckpt_path or not isinstance(limit, int) or trainer.get("fast_dev_run"):
        return False
    if not Path(args.ckpt_path).resolve().is_relative_to(folder) or step_of(args.ckpt_path) != limit:
        return False
    print(
        f"nothing to do: {folder} is at step {limit} of {limit}; to train on, raise trainer.max_steps (vars.steps, in "
        "the experiments here)"
    )
    return True


def _give_figures(args: argparse.Namespace, folder: Path) -> None:
    """The figures of the last validation or test, once, however many processes there are."""
    if not getattr(args, "document", False):
        return
    from lightning.pytorch.utilities import rank_zero_only

    figures = folder / f"metrics_{'test' if args.command == 'test' else 'val'}.json"
    if getattr(rank_zero_only, "rank", 0) == 0 and figures.is_file():
        give_file(args, figures)


def _resolve_checkpoint(args: argparse.Namespace, folder: Path) -> None:
    """Make a path, or None, of what `--ckpt_path` says."""
    last = folder / "checkpoints" / "last.ckpt"
    if args.ckpt_path == "auto":
        args.ckpt_path = str(last) if last.is_file() else None
    elif args.ckpt_path == "last":
        if not last.is_file():
            raise UserError(f"--ckpt_path last: no checkpoint {last}; leave --ckpt_path out to start the run")
        args.ckpt_path = str(last)
    elif args.ckpt_path:
        path = Path(args.ckpt_path).expanduser()
        if not path.is_file():
            raise UserError(f"--ckpt_path: no file {args.ckpt_path}")
        args.ckpt_path = str(path)


def _check_trainer(trainer: dict[str, Any]) -> None:
    """Refuse what Lightning offers and these systems cannot do."""
    precision = str(trainer.get("precision") or "32-true")
    if precision.endswith("-true") and precision != "32-true":
        raise UserError(
            f"trainer.precision: {precision} is not possible, since entropy coding needs float32 parameters; take "
            "bf16-mixed, or 32-true"
        )
    if trainer.get("overfit_batches"):
        raise UserError(
            "trainer.overfit_batches is not possible, since the data modules number their samples themselves; to "
            "overfit, train on a folder of a few images (data.init_args.train_dir)"
        )


def _check_checkpoint(args: argparse.Namespace, folder: Path, trainer: dict[str, Any]) -> None:
    """Refuse, before anything is built or written, what would damage a run or could not train."""
    last = folder / "checkpoints" / "last.ckpt"
    if not args.ckpt_path:
        if args.command != "fit":
            raise UserError(f"{args.command} needs a checkpoint: add --ckpt_path last, or --ckpt_path FILE")
        if last.is_file() and not trainer.get("fast_dev_run"):
            raise UserError(
                f"{folder} already holds a run; go on with it by --ckpt_path last, or start anew in another folder "
                "(--vars.name=NAME)"
            )
        return

    from aeic_lightning.checkpoints.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(args.ckpt_path, "--ckpt_path", mmap=True)
    own = Path(args.ckpt_path).resolve().is_relative_to(folder)
    if last.is_file() and not own and not trainer.get("fast_dev_run"):
        raise UserError(
            f"{folder} holds another run than {args.ckpt_path}, whose records would be replaced; choose another folder "
            "(--vars.name=NAME)"
        )
    for limit, done in (("max_steps", "global_step"), ("max_epochs", "epoch")):
        most = trainer.get(limit)
        if args.command == "fit" and isinstance(most, int) and 0 < most < checkpoint.get(done, 0):
            raise UserError(
                f"trainer.{limit} is {most}, but {args.ckpt_path} is from {checkpoint[done]} already; raise it "
                "(vars.steps, in the experiments here), or leave the run as it is"
            )
