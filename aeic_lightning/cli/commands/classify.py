"""`classify`: what .aeic files show, from the streams alone."""

import argparse
import sys
import time
from pathlib import Path

from aeic_lightning.cli import refuse_extra
from aeic_lightning.errors import UserError
from aeic_lightning.output import add_json_argument, counted, shown
from aeic_lightning.timing import peak_memory

EXAMPLE = """
example:
  aeic-lightning classify streams/ --checkpoint runs/classification/step2_q2/checkpoints/last.ckpt

A head that was trained on decoded pictures has to decode them first; one that reads latents does not.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Streams, checkpoint, how many classes."""
    parser.epilog = EXAMPLE
    parser.add_argument("streams", nargs="+", metavar="FILE", help=".aeic files, or folders of them")
    parser.add_argument("--checkpoint", required=True, help="the model that wrote them, with its classifier")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes to print for each file (default 5)")
    add_json_argument(parser)


def run(args: argparse.Namespace, extra: list[str]) -> int:
    """One line for each file: the likeliest classes with their probabilities. Exit code 2 if any file failed."""
    refuse_extra(extra)
    if args.top < 1:
        raise UserError(f"--top is {args.top}; it starts at 1")
    from aeic_lightning.files import require_model

    paths = _streams(args.streams)
    require_model(args.checkpoint)

    from aeic_lightning.classification.checkpoint import load_classifier

    classifier = load_classifier(args.checkpoint)
    failed, began = 0, time.monotonic()
    files: list[dict] = []
    for path in paths:
        try:
            data = path.read_bytes()
            logits = classifier.logits(classifier.codec.bitstream.decode(data))
        except (UserError, OSError) as error:
            failed += 1
            files.append({"file": str(path), "error": str(error)})
            print(shown(f"error: {path}: {error}"), file=sys.stderr)
            continue
        best = logits.softmax(0).topk(min(args.top, len(logits)))
        classes = [
            {"class": classifier.class_names[i], "probability": round(p, 6)}
            for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        files.append({"file": str(path), "bytes": len(data), "classes": classes})
        words = "  ".join(f"{found['class']} {found['probability']:.1%}" for found in classes)
        print(f"{shown(path)}  {len(data)} bytes  {words}", flush=True)
    args.give({"files": files})
    seconds = time.monotonic() - began
    done = len(paths) - failed
    peak = 2**10 * peak_memory()
    print(
        f"{counted(done, 'file')}, {failed} failed, "
        f"{1000 * seconds / max(done, 1):.1f} ms a file, peak memory {peak:.0f} MiB",
        file=sys.stderr,
    )
    return 2 if failed else 0


def _streams(sources: list[str]) -> list[Path]:
    from aeic_lightning.files import find_streams

    paths = []
    for source in map(Path, sources):
        if not source.exists():
            raise UserError(f"no file or folder {source}; check the path")
        inside = find_streams(source) if source.is_dir() else [source]
        if not inside:
            raise UserError(f"no .aeic file in {source} or below it")
        paths += inside
    return paths
