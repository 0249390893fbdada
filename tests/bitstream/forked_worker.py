"""The processes of `verify`, forked instead of started: nothing is imported anew.

What a setting changes in the environment is without effect here, since the libraries are loaded already.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.forked import Server


def fork_workers(server: Server, monkeypatch: pytest.MonkeyPatch, drift: int = 0) -> None:
    """Have `verify` take its processes from `server`; in them, float64 products are off by `drift`."""

    def run(command: list[str], input: str, env: dict[str, str], **_: Any) -> subprocess.CompletedProcess:
        assert command == [sys.executable, "-m", "aeic_lightning.cli.commands.verify"]
        return server.finish("tests.bitstream.forked_worker:answer", input, drift, env=env)

    monkeypatch.setattr(subprocess, "run", run)


def answer(request: str, drift: int) -> None:
    from aeic_lightning.bitstream import products
    from aeic_lightning.cli.commands import verify

    right = products.product_float64
    if drift:
        products.product_float64 = lambda q, weight, limit: right(q, weight, limit) + drift
    print(json.dumps(verify.answer(json.loads(request))))
