"""`serve`: a page on this machine to try the codec."""

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aeic_lightning.cli import refuse_extra
from aeic_lightning.errors import UserError
from aeic_lightning.extras import require
from aeic_lightning.torch_settings import check_device

EPILOG = """
The page listens on 127.0.0.1 alone. It takes photographs of at most 20 MB, codes one at a time, and keeps nothing.

examples:
  aeic-lightning serve                                       # the models that ship
  aeic-lightning serve --checkpoint my-student --port 8001
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Models and port."""
    parser.epilog = EPILOG
    parser.add_argument("--checkpoint", action="append", default=[], metavar="CKPT",
                        help="offer this model too, a checkpoint of `fit` or a folder of weights")  # fmt: skip
    parser.add_argument("--port", type=int, default=8000, help="of 127.0.0.1 (default: 8000; 0: any free one)")
    parser.add_argument("--device", default="cpu", help="where decoders compute: cpu, cuda ...")


def run(args: argparse.Namespace, extra: list[str]) -> None:
    """Serve until SIGINT (Ctrl-C) or SIGTERM, which end it with exit code 0."""
    refuse_extra(extra)
    with _until_a_signal():
        _serve(args)


@contextmanager
def _until_a_signal() -> Iterator[None]:
    """What is within ends at SIGINT or SIGTERM, even where the shell has SIGINT ignored, as in the background."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:  # from uvicorn too, which closes its connections first and then raises the signal again
        print("stopped", file=sys.stderr)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve(args: argparse.Namespace) -> None:
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port is {args.port}; a port is from 0 to 65535")
    require("serve", "fastapi", "uvicorn")
    check_device(args.device)
    from aeic_lightning.files import require_model
    from aeic_lightning.zoo import names

    models = {name: name for name in names()}
    for checkpoint in args.checkpoint:
        require_model(checkpoint)
        path = Path(checkpoint)
        name = path.name if path.is_dir() else path.resolve().parent.parent.name
        models[name if name not in models else checkpoint] = checkpoint

    import socket

    import uvicorn

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", args.port))
        except OSError as error:
            taken = f"port {args.port} of 127.0.0.1 cannot be had ({error.strerror})"
            raise UserError(f"{taken}; choose another, or any free one with --port=0") from error
        listener.listen()  # a page that is opened at once waits until the models can be loaded
        print(f"http://127.0.0.1:{listener.getsockname()[1]}  (Ctrl-C ends it)", flush=True)
        from aeic_lightning.serve.app import make_app

        app = make_app(models, args.device)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listener])
