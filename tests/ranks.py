"""Processes of one data-parallel run, forked instead of launched by Lightning, which would import everything anew."""

import os
import socket
from pathlib import Path
from typing import Any

from tests.forked import Server


def finish_ranks(server: Server, folder: Path, function: str, *arguments: Any, count: int = 2) -> None:
    """Call `module:function` in `count` processes that find each other as Lightning's own do; all end with 0.

    What they print goes to `folder`. AssertionError, with the end of it, where one does not.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "NODE_RANK": "0"}
    logs = [folder / f"rank{rank}.log" for rank in range(count)]
    processes = [
        server.call(function, *arguments, output=log, env=os.environ | common | {"LOCAL_RANK": str(rank)})
        for rank, log in enumerate(logs)
    ]
    codes = [process.wait() for process in processes]
    assert codes == [0] * count, "\n".join(log.read_text()[-2000:] for log in logs)
