"""`export`: the send and the receive half as ONNX."""

import argparse
from pathlib import Path

from aeic_lightning.cli import refuse_extra
from aeic_lightning.errors import UserError
from aeic_lightning.files import check_can_write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Checkpoint and target."""
    parser.add_argument("--checkpoint", required=True, help="the model to export")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="a folder that does not exist yet")
    parser.epilog = "Needs the packages onnx, onnxruntime and onnxscript: pip install 'aeic-lightning[export]'."


def run(args: argparse.Namespace, extra: list[str]) -> None:
    """Write DIR/send, DIR/receive and DIR/golden, whole or not at all."""
    refuse_extra(extra)
    output = Path(args.out)
    if output.exists():
        raise UserError(f"{output} exists; export into a folder that does not")
    check_can_write(output)
    from aeic_lightning.checkpoints.weights import require

    require(args.checkpoint)
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"export needs {error.name}: pip install 'aeic-lightning[export]'") from error
    import shutil
    import tempfile

    from aeic_lightning.bitstream.export import export
    from aeic_lightning.checkpoints.checkpoint import load_aeic

    model = load_aeic(args.checkpoint)
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        export(model, beside)
        beside.chmod(0o755)
        beside.rename(output)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    for half in ("send", "receive"):
        size = sum(path.stat().st_size for path in (output / half).iterdir())
        print(f"{output / half}  {size / 2**20:.1f} MiB")
    print(f"{output / 'golden'}  reproduced by both halves in onnxruntime")
