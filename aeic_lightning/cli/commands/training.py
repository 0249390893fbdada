"""`fit`, `validate`, `test`, `predict`: LightningCLI on a config that OmegaConf has resolved."""

import argparse
from pathlib import Path

from aeic_lightning.config import load_config, parse_overrides, with_sources
from aeic_lightning.errors import UserError

EXAMPLES = """
any setting can be overridden, and the override reaches every value that refers to it:
  --vars.steps=200  --model.init_args.objective.mse=4  --trainer.callbacks=[]

examples:
  python -m aeic_lightning fit --config experiments/tiny/teacher_stage1.yaml
  python -m aeic_lightning fit --config experiments/tiny/teacher_stage1.yaml --vars.name=mine --vars.lambda=2
  python -m aeic_lightning fit --config experiments/tiny/teacher_stage1.yaml --ckpt_path last
  python -m aeic_lightning fit --config experiments/paper/se_stage2.yaml --dry-run    (the same as `plan`)
  python -m aeic_lightning fit --config FILE --print_config=comments     every setting, with its meaning
  python -m aeic_lightning fit --config FILE --print_config=sources      what is set, with the file that sets it
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
    config = load_config(args.config, parse_overrides(extra))
    if args.command == "fit" and args.dry_run:
        from aeic_lightning.study.plan import make_plan, print_plan

        return print_plan(make_plan(config, args.config[-1]))
    folder = Path((config.get("trainer") or {}).get("default_root_dir") or ".")
    last = folder / "checkpoints" / "last.ckpt"
    if args.ckpt_path == "auto":
        args.ckpt_path = str(last) if last.is_file() else None
    elif args.ckpt_path == "last":
        if not last.is_file():
            raise UserError(f"--ckpt_path last: no checkpoint {last}; leave --ckpt_path out to start the run")
        args.ckpt_path = str(last)
    elif args.ckpt_path and not Path(args.ckpt_path).is_file():
        raise UserError(f"--ckpt_path: no file {args.ckpt_path}")
    if args.command != "fit" and not args.ckpt_path and args.print_config is None:
        raise UserError(f"{args.command} needs a checkpoint: add --ckpt_path last, or --ckpt_path FILE")
    if args.command == "fit" and not args.ckpt_path and args.print_config is None and last.is_file():
        raise UserError(
            f"{folder} already holds a run; go on with it by --ckpt_path last, or start anew in another folder "
            "(--vars.name=NAME)"
        )
    if args.ckpt_path:
        from aeic_lightning.checkpoints.checkpoint import read_checkpoint

        read_checkpoint(args.ckpt_path, "--ckpt_path", mmap=True)  # before anything is built or written
        config["ckpt_path"] = args.ckpt_path
        config["weights_only"] = True

    from aeic_lightning.config.lightning_cli import run_lightning

    run_lightning(args.command, config, args.print_config)
    return 0
