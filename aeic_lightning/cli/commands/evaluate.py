"""`evaluate`: metrics of a checkpoint, or of pictures that any codec left, on a folder of images."""

import argparse
import contextlib
from pathlib import Path

from aeic_lightning.bitstream.wire import check_rate
from aeic_lightning.cli import refuse_extra
from aeic_lightning.errors import UserError
from aeic_lightning.files import check_can_write, check_file_names
from aeic_lightning.output import add_json_argument, align, give_file

EPILOG = """
Every image is written as a file, read back, and measured in 8 bits. FID and KID are on patches in two grids, and are
refused below --min-patches and --min-images. Beside FILE.json a FILE.csv has one row per image.

examples:
  aeic-lightning evaluate --checkpoint runs/tiny/student/checkpoints/last.ckpt --images kodak/ -o student.json
  aeic-lightning evaluate --checkpoint student.ckpt --images sample-photos -o student.json
  aeic-lightning evaluate --checkpoint small-student --images kodak/ --bpp 0.06 0.12 -o small.json
  aeic-lightning evaluate --images kodak/ --reconstructions theirs/ --streams theirs_files/ -o theirs.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is evaluated, on what, by which metrics."""
    parser.epilog = EPILOG
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", metavar="CKPT", help="the model that codes the images")
    what.add_argument("--reconstructions", metavar="DIR", help="pictures of any codec, joined to the images by name")
    parser.add_argument("--streams", type=Path, metavar="DIR", help="that codec's files, for the rate")
    rate = parser.add_mutually_exclusive_group()
    levels = "rate levels of a model of many rates, one result per level (default: the middle one)"
    rate.add_argument("--levels", nargs="+", type=float, metavar="LEVEL", help=levels)
    targets = "the best file of each image within R bits per pixel, one result per rate"
    rate.add_argument("--bpp", nargs="+", type=float, metavar="R", help=targets)
    realism = "of the pictures, from 0 to 1, as `decompress` takes it"
    parser.add_argument("--realism", type=float, metavar="R", help=realism)
    parser.add_argument("--device", default="cpu", help="where a checkpoint's receiver runs, e.g. cuda (default cpu)")
    workers = "processes that code and measure the images of a checkpoint; the threads are divided (default 1)"
    parser.add_argument("--workers", type=int, default=1, metavar="N", help=workers)
    add_measure_arguments(parser)


def add_measure_arguments(parser: argparse.ArgumentParser, images_required: bool = True) -> None:
    """Images, metrics and target, which `anchors` has too."""
    images = "originals: a folder and what is below it; or sample-photos, three that need no folder"
    parser.add_argument("--images", required=images_required, metavar="DIR", help=images)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE.json", help="where the result goes")
    backbones = (
        "networks of the metrics: lite0, lite2, alex, vgg, inception (default: all whose weights are available), hed"
    )
    parser.add_argument("--backbones", nargs="+", metavar="NAME", help=backbones)
    own = "metrics of your own, as YAML: '[{class_path: my_metric.MyMetric, higher: false}]' (CONTRIBUTING.md)"
    parser.add_argument("--metrics", metavar="LIST", help=own)
    size = "take at most the centre of an image, as data.val_max_size does (default: the full size)"
    parser.add_argument("--max-size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help=size)
    parser.add_argument("--patch-size", type=int, default=256, help="of FID and KID, pixels (default 256)")
    parser.add_argument("--min-patches", type=int, default=400, help="refuse FID and KID below (default 400)")
    parser.add_argument("--min-images", type=int, default=50, help="likewise, of images (default 50)")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="write originals and reconstructions as PNG")
    parser.add_argument("--name", help="of the result (default: the run's)")
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="a label more, e.g. lambda=2")
    parser.add_argument("--force", action="store_true", help="overwrite a result that exists")
    add_json_argument(parser)


def run(args: argparse.Namespace, extra: list[str]) -> None:
    """Write the result, and print its means."""
    refuse_extra(extra)
    if args.streams and not args.reconstructions:
        raise UserError("--streams goes with --reconstructions; a checkpoint writes its own")
    if args.reconstructions and args.max_size:
        raise UserError("--max-size would crop the originals alone; leave it out with --reconstructions")
    if (args.levels or args.bpp) and not args.checkpoint:
        raise UserError("--levels and --bpp go with --checkpoint; pictures that are there already have their rate")
    if args.realism is not None and not args.checkpoint:
        raise UserError("--realism goes with --checkpoint; pictures that are there are as they are")
    if args.workers < 1 or (args.workers > 1 and not args.checkpoint):
        raise UserError("--workers is 1 or more, and goes with --checkpoint")
    for bpp in args.bpp or []:
        check_rate(bpp)
    labels, max_size = check_measure_arguments(args)

    from aeic_lightning.files import require_images, require_model

    for source in filter(None, (args.images, args.reconstructions)):
        require_images(source)
    if args.checkpoint:
        require_model(args.checkpoint)

    from aeic_lightning.checkpoints.checkpoint import warn_of_untrained_rate
    from aeic_lightning.study.evaluate import Checkpoint, RatePoint, evaluate_checkpoint, evaluate_files, summary
    from aeic_lightning.study.evaluation_workers import Workers
    from aeic_lightning.study.measurement import measurement, open_images
    from aeic_lightning.study.results import write_results

    images = open_images(args.images, max_size)
    if args.pictures:
        check_file_names(images.names)
    settings = {"backbones": args.backbones, "patch_size": args.patch_size}
    settings |= {"min_patches": args.min_patches, "min_images": args.min_images, "metrics": own_metrics(args)}
    measure = measurement(**settings)
    if args.checkpoint:
        warn_of_untrained_rate(args.checkpoint)
        options = {"name": args.name, "labels": labels, "pictures": args.pictures}
        points = [RatePoint(level=level) for level in args.levels or []] + [RatePoint(bpp=r) for r in args.bpp or []]
        checkpoint = Checkpoint(args.checkpoint, args.device, args.realism)
        results = []
        with contextlib.ExitStack() as stack:
            if (workers := min(args.workers, len(images))) > 1:
                started = Workers(args.checkpoint, args.device, settings, workers, args.realism)
                options["workers"] = stack.enter_context(started)
            for point in points or [RatePoint()]:
                if args.pictures and point.words:
                    options["pictures"] = args.pictures / point.words.strip().replace(" ", "_")
                results.append(evaluate_checkpoint(checkpoint, images, measure, point=point, **options))
    else:
        name = args.name or Path(args.reconstructions).resolve().name
        options = {"name": name, "labels": labels, "streams": args.streams, "pictures": args.pictures}
        results = [evaluate_files(images, open_images(args.reconstructions), measure, **options)]
    written = write_results(args.out, results)
    for result in results:
        print(f"\n{result.name}: {len(result.images)} images of {args.images}\n\n{align(summary(result))}")
    print(f"written: {', '.join(map(str, written))}")
    give_file(args, args.out)


def own_metrics(args: argparse.Namespace) -> list[dict]:
    """What `--metrics` lists. Raises UserError for what is no list."""
    import yaml

    try:
        listed = yaml.safe_load(args.metrics or "[]")
    except yaml.YAMLError:
        listed = None
    if not isinstance(listed, list):
        raise UserError(f"--metrics {args.metrics}: write '[{{class_path: my_metric.MyMetric, higher: false}}]'")
    return listed


def check_measure_arguments(args: argparse.Namespace) -> tuple[dict[str, int | float | str], tuple[int, int] | None]:
    """Labels and crop. Raises UserError, before anything is loaded, for arguments that cannot be."""
    if args.out.suffix != ".json":
        raise UserError(f"-o {args.out}: name a .json file")
    for path in (args.out, args.out.with_suffix(".csv")):
        if path.exists() and not args.force:
            raise UserError(f"{path} exists; remove it, choose another name, or add --force")
        check_can_write(path)
    if args.pictures:
        check_can_write(args.pictures, folder=True)
    if args.max_size and min(args.max_size) < 1:
        raise UserError("--max-size is a height and a width in pixels")
    labels = {}
    for word in args.label:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UserError(f"--label {word}: write KEY=VALUE")
        labels[key] = _number(value)
    return labels, tuple(args.max_size) if args.max_size else None


def _number(value: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
