"""`board`: a leaderboard whose every figure is measured anew."""

import argparse
from pathlib import Path

from aeic_lightning.bitstream.wire import check_rate
from aeic_lightning.cli import refuse_extra
from aeic_lightning.errors import UserError
from aeic_lightning.extras import require
from aeic_lightning.files import check_can_write, write_whole
from aeic_lightning.output import add_json_argument

EPILOG = """
FOLDER holds one folder a submission: submission.yaml, streams/, decoder/ and claims.csv (docs/howto_board.md), and
board.yaml: images, rates of the rivals, limits. Each stream is decoded alone, without network; what is not as claimed
is refused with the reason. Exit code 1 if a submission was refused.

examples:
  aeic-lightning board submissions/ --hand-in small-student --bpp 0.03 0.06
  aeic-lightning board submissions/ -o board.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Folder, page, and what is handed in."""
    parser.epilog = EPILOG
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the submissions")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE.html", help="the page; FILE.json is written beside it")
    parser.add_argument("--hand-in", metavar="CKPT", help="write submissions of this model into FOLDER, and stop there")
    parser.add_argument("--bpp", nargs="+", type=float, default=[], metavar="R", help="rates to hand in")
    parser.add_argument("--no-isolation", action="store_true",
                        help="where there is no isolation, run commands of submissions that you trust")  # fmt: skip
    add_json_argument(parser)


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """Write the page, or submissions. Exit code 1 if one was refused."""
    refuse_extra(extra)
    if bool(args.hand_in) == bool(args.out) or bool(args.hand_in) != bool(args.bpp):
        raise UserError("give -o FILE.html for the page, or --hand-in CKPT --bpp R for submissions of a model")
    for bpp in args.bpp:
        check_rate(bpp)
    if args.out:
        if args.out.suffix != ".html":
            raise UserError(f"-o {args.out}: name a .html file")
        for path in (args.out, args.out.with_suffix(".json")):
            check_can_write(path)
        require("board", "jinja2", "bjontegaard")

    from aeic_lightning.board.submission import find_submissions
    from aeic_lightning.board.table import make_board, open_board_images, read_settings, to_document
    from aeic_lightning.study.measurement import measurement

    settings = read_settings(args.folder)
    if args.out:
        find_submissions(args.folder)
    measure = measurement(settings.backbones, settings.patch_size, settings.min_patches, settings.min_images)
    if args.hand_in:
        from aeic_lightning.board.hand_in import hand_in

        images = open_board_images(settings, args.folder)
        for bpp in args.bpp:
            print(f"written: {hand_in(args.hand_in, bpp, images, measure, args.folder)}", flush=True)
        return 0

    from aeic_lightning.board.page import page
    from aeic_lightning.provenance import command_line
    from aeic_lightning.study.results import write_json

    board = make_board(args.folder, measure, unsafe=args.no_isolation)
    write_whole(args.out, page(board, command_line()))
    document = to_document(board)
    write_json(args.out.with_suffix(".json"), document)
    args.give(document)
    for found in board.refused:
        print(f"refused: {found.name}\n" + "\n".join(f"  - {reason}" for reason in found.reasons))
    print(f"{len(board.accepted)} as claimed, {len(board.refused)} refused, {len(board.rivals)} rows of rivals")
    print(f"written: {args.out}, {args.out.with_suffix('.json')}")
    return 1 if board.refused else 0
