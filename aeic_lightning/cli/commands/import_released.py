"""`import-released`: a checkpoint that the authors of AEIC or of compress-and-classify released, as one of ours."""

import argparse
from pathlib import Path

from aeic_lightning.cli import refuse_extra
from aeic_lightning.files import check_can_write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, where the result goes, and where the base weights are."""
    parser.add_argument("file", type=Path, help="released file of AEIC-ME, AEIC-SE or compress-and-classify")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="CKPT", help="checkpoint to write")
    parser.add_argument("--unet", metavar="FOLDER", help="SD-Turbo (default: stabilityai/sd-turbo, see below)")
    parser.add_argument("--vae", metavar="FILE", help="half-width VAE decoder (default: AdcSR's halfDecoder.ckpt)")
    parser.epilog = (
        "AEIC's base weights are looked for as a path, in the folder AEIC_WEIGHTS, and in the Hugging Face cache.\n"
        "They are not copied; where they are available, their digest is recorded, so that others are refused later."
    )


def run(args: argparse.Namespace, extra: list[str]) -> None:
    """Convert and say what it was."""
    refuse_extra(extra)
    check_can_write(args.out)
    from aeic_lightning.checkpoints.released import import_released
    from aeic_lightning.models.decoder import PretrainedConfig

    base = PretrainedConfig()
    base.unet, base.vae = args.unet or base.unet, args.vae or base.vae
    name, at_hand = import_released(args.file, args.out, base)
    print(f"{args.file} is {name}; wrote {args.out}")
    if not at_hand:
        print(f"no base weights here ({base.unet}, {base.vae}): any of the right sizes will be accepted")
