"""README and docs as what they tell a reader to do: the blocks of a page, and a shell that runs them in one process.

A `bash` block is run as it is. Commands of this project run in this process, which has imported torch already; anything
else runs in bash. What takes minutes is made small below the surface (`small`): one step, small crops, few images. A
block whose first line is `# Not run by the tests: REASON` is left out, and `# Exit code N: REASON` announces a failure.
A `text` block directly below a `bash` block is what the commands print, up to numbers. A `yaml` or `python` block whose
first line is `# NAME.yaml` or `# NAME.py` is written to that file.
"""

import contextlib
import glob
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aeic_lightning.cli import main
from aeic_lightning.study.executors import conclude

NOT_RUN = re.compile(r"# Not run by the tests: (.+)\.?")
EXIT_CODE = re.compile(r"# Exit code (\d+): ")


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, line, language and text, and whether it stands directly below another block."""

    page: str
    line: int
    language: str
    text: str
    follows: bool

    @property
    def not_run(self) -> str | None:
        """Why it is left out; None if it is run."""
        match = NOT_RUN.match(self.text)
        return match[1] if match else None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(root: Path, page: str) -> Iterator[Block]:
    text = (root / page).read_text()
    end = 0
    for match in re.finditer(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        follows = not text[end : match.start()].strip()
        yield Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2], follows)
        end = match.end()


def commands(text: str) -> list[list[str]]:
    """The commands of a block, as words without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run(block: Block) -> str:
    """Run a `bash` block in the working folder and return what it printed. AssertionError where a command fails."""
    match = EXIT_CODE.match(block.text)
    expected = int(match[1]) if match else 0
    printed = io.StringIO()
    for words in commands(block.text):
        words = [path for word in words for path in (sorted(glob.glob(word)) or [word])]
        if words[0] == "aeic-lightning":
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                try:
                    code = main(words[1:])
                except SystemExit as stop:
                    code = stop.code
        else:
            done = subprocess.run(["bash", "-c", shlex.join(words)], capture_output=True, text=True)
            printed.write(done.stdout + done.stderr)
            code = done.returncode
        tail = "\n".join(printed.getvalue().splitlines()[-12:])
        assert code == expected, f"{block}: {shlex.join(words)}\nexit code {code}\n{tail}"
    return printed.getvalue()


def form(line: str) -> str:
    """A line of output up to its numbers."""
    return re.sub(r"\d+(\.\d+)?", "N", " ".join(line.split()))


def check_output(block: Block, printed: str) -> None:
    """Each line of a `text` block was printed, in this order, up to numbers."""
    lines = iter(map(form, printed.splitlines()))
    for line in block.text.splitlines():
        assert line.strip() == "..." or form(line) in lines, f"{block}: not printed: {line}"


# ---------------------------------------------------------------------- small


def small(monkeypatch: Any) -> None:
    """One step, small crops and few small images, for whatever the pages train and measure."""
    from aeic_lightning import config
    from aeic_lightning.bitstream import export
    from aeic_lightning.study import measurement, runner
    from datamodules import labelled, sample_photos

    resolve = config._resolved

    def resolved(files: Any, layers: Any, classes: str = "all") -> dict:
        settings = resolve(files, layers, classes)
        if "model" not in settings or sys._getframe(1).f_code.co_name == "with_sources":
            return settings  # a sweep, or what the files say
        trainer, data = settings.setdefault("trainer", {}), settings["data"].setdefault("init_args", {})
        if "Digits" in settings["data"]["class_path"]:
            data["batch_size"] = 2  # mixup wants an even number
        else:
            data |= {"crop_size": 128, "val_max_size": [128, 128], "batch_size": 1}
        if data.get("val_count"):
            data["val_count"] = 1
        data["num_workers"] = 0
        trainer |= {"max_steps": 1, "val_check_interval": 1}
        terms = settings["model"]["init_args"].get("objective") or {}
        for name in {"lpips", "edge_dists", "semantic", "adversarial"} & set(terms):
            if "paper" not in str(files):
                terms[name] = 0
        return settings

    def open_images(source: str, max_size: Any = None) -> Any:
        return measurement.Images(found(source).files, (128, 128))

    found = measurement.open_images
    monkeypatch.setattr(config, "_resolved", resolved)
    monkeypatch.setattr(measurement, "open_images", open_images)
    monkeypatch.setattr(labelled.SampleDigits, "VALIDATION", 3)
    monkeypatch.setattr(sample_photos, "VAL", sample_photos.VAL[:2])
    monkeypatch.setattr(runner, "LocalExecutor", InThisProcess)
    monkeypatch.setattr(runner, "POLL", 0)
    monkeypatch.setattr(export, "export", write_nothing)  # takes minutes at any size, and has tests of its own
    no_processes(monkeypatch)
    monkeypatch.setenv("TQDM_DISABLE", "1")


def no_processes(monkeypatch: Any) -> None:
    """Let `verify` and `bench` work in this process, under its settings: their processes have tests of their own."""
    from aeic_lightning.cli.commands import bench, verify

    def work(checkpoint: str, setting: str, encode: list, decode: list) -> dict:
        settings = {"threads": 1, "onednn": True, "channels_last": False, "kernel": None, "fast": False}
        return verify.answer(settings | {"checkpoint": checkpoint, "encode": encode, "decode": decode})

    monkeypatch.setattr(verify, "assume_bfloat16", lambda quicker: None)
    monkeypatch.setattr(verify, "work", work)
    monkeypatch.setattr(bench, "peak_of", lambda *arguments: 0.5)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # a second thread of small sizes waits, busily


def write_nothing(model: Any, folder: Path, realism: float | None = None, say: Any = None) -> None:
    """The folders of an ONNX export."""
    for half in ("send", "receive", "golden"):
        (folder / half).mkdir()


class InThisProcess:
    """Takes a sweep's runs one after the other, where LocalExecutor starts processes."""

    def __init__(self, sweep: Any) -> None:
        pass

    def submit(self, run: Any) -> "InThisProcess.Ended":
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
            code = main(run.command[3:])
        return InThisProcess.Ended(said.getvalue() if code else conclude(run, 0, 0))

    def release(self, started: Any) -> None: ...

    def stop(self) -> None: ...

    @dataclass
    class Ended:
        error: str | None

        def done(self) -> bool:
            return True

        def result(self) -> str | None:
            return self.error
