"""What a newcomer meets, from the wheel to a device without PyTorch: `python -m benchmarks.newcomer` writes the log.

The wheel of a fresh clone goes into an empty environment, the clone goes away, and the commands of README and docs run
in an empty folder. A command that fails ends it. It needs the network or an index of packages, and only Python itself.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINES = 4
"""Last lines of what a command printed that the log keeps."""


@dataclass
class Entry:
    """A step: what was done, the commands, what they printed last, seconds, and sizes in words."""

    title: str
    commands: str
    printed: str
    seconds: float
    size: str = ""


@dataclass
class Newcomer:
    """A folder outside of the checkout, and what happened there.

    Attributes:
        base: everything is within it; commands run in its folder `work`.
        entries: steps so far.
    """

    base: Path
    entries: list[Entry] = field(default_factory=list)

    def variables(self, environment: str) -> dict[str, str]:
        """Of the shell: those of the caller without what leads to the checkout, and an environment that is active."""
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
        return kept | {"PATH": f"{self.base / environment / 'bin'}:{kept['PATH']}", "TQDM_DISABLE": "1"}

    def run(
        self, title: str, commands: str, environment: str = "env", folder: str = "work",
        size: Callable[[], str] = str,
    ) -> Entry:  # fmt: skip
        """Run commands and keep the entry. SystemExit with all that was printed where one fails."""
        if title in (done := {entry.title: entry for entry in self.entries}):
            return done[title]
        print(f"{title} ...", flush=True)
        (self.base / folder).mkdir(exist_ok=True)
        began = time.monotonic()
        ended = subprocess.run(
            ["bash", "-ec", commands], cwd=self.base / folder, env=self.variables(environment), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        seconds = time.monotonic() - began
        if ended.returncode:
            raise SystemExit(f"{commands}\n{ended.stdout}\nexit code {ended.returncode}, in {self.base / folder}")
        shown = commands.replace(str(ROOT), "https://github.com/OWNER/aeic_lightning")
        return self.keep(Entry(title, shown, self.last_lines(ended.stdout), seconds, size()))

    def keep(self, entry: Entry) -> Entry:
        """Add an entry, and write all of them to `log.json`."""
        self.entries.append(entry)
        (self.base / "log.json").write_text(json.dumps([asdict(entry) for entry in self.entries], indent=1))
        print(f"  {entry.seconds:.1f} s  {entry.size}", flush=True)
        return entry

    def last_lines(self, text: str) -> str:
        """What the log keeps of an output: without progress, colours and the names of this machine's folders."""
        text = re.sub(r"\x1b\[[0-9;]*m", "", text).replace(str(self.base), "..").replace(str(ROOT), "CHECKOUT")
        lines = [line.rsplit("\r", 1)[-1].rstrip()[:160] for line in text.splitlines()]
        lines = [line for line in lines if line.strip() and not line.startswith("WARNING: Location")]  # of pip's index
        return "\n".join(lines[-LINES:])

    def megabytes(self, path: str) -> str:
        """Of a folder or file, as `du -sm` counts."""
        (found,) = self.base.glob(path)
        return (
            subprocess.run(["du", "-sm", found], capture_output=True, text=True, check=True).stdout.split()[0] + " MB"
        )

    def packages(self, environment: str) -> str:
        """Size of an environment's packages, and how many there are."""
        (site,) = self.base.glob(f"{environment}/lib/python*/site-packages")
        count = len([*site.glob("*.dist-info")])
        return f"{self.megabytes(f'{environment}/lib/python*/site-packages')}, {count} packages"

    def bytes_of(self, path: str) -> str:
        """Of a file in `work`."""
        return f"{(self.base / 'work' / path).stat().st_size:,} bytes"


def install(at: Newcomer, torch: str) -> str:
    """The wheel in an environment; returns the wheel's path from `work`."""
    at.run(
        "The wheel",
        f"git clone --quiet {ROOT} ../source\npython3 -m venv ../env\n"
        "pip wheel --quiet --no-deps -w ../dist ../source\nrm -rf ../source",
        size=lambda: at.megabytes("dist/*.whl"),
    )  # fmt: skip
    at.run("PyTorch", f"pip install --quiet {torch}", size=lambda: at.packages("env"))
    (wheel,) = at.base.glob("dist/*.whl")
    at.run("Install what codes", f"pip install --quiet ../dist/{wheel.name}", size=lambda: at.packages("env"))
    return f"../dist/{wheel.name}"


def code(at: Newcomer) -> None:
    """A photograph to a file and back."""
    data = "../env/lib/python3*/site-packages/skimage/data"
    at.run("A photograph", f"cp {data}/coffee.png photo.png", size=lambda: at.bytes_of("photo.png"))
    words = "aeic-lightning compress photo.png -o streams --bpp 0.05"
    at.run("Compress", words, size=lambda: at.bytes_of("streams/photo.aeic"))
    at.run("Decompress", "aeic-lightning decompress streams/photo.aeic -o pictures")


def serve(at: Newcomer) -> None:
    """The page of `serve` answers, and codes the photograph."""
    title = "Open the page, code the photograph"
    if title in [entry.title for entry in at.entries]:
        return
    print(f"{title} ...", flush=True)
    words = ["aeic-lightning", "serve", "--port", "0"]
    began = time.monotonic()
    with open(at.base / "serve.log", "w+") as log:
        server = subprocess.Popen(
            [at.base / "env/bin" / words[0], *words[1:]], cwd=at.base / "work", env=at.variables("env"),
            stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            printed = time.monotonic() - began
            address = line.split()[0] if line.strip() else ""
            if not address.startswith("http://"):
                raise SystemExit(f"serve printed no address: {line!r}; {Path(log.name).read_text()}")
            page = urllib.request.urlopen(address, timeout=300).read()
            answered = time.monotonic() - began
            body = (at.base / "work/photo.png").read_bytes()
            trial = urllib.request.Request(f"{address}/trial?model=small-student&bpp=0.05", body, method="POST")
            events = [json.loads(row) for row in urllib.request.urlopen(trial, timeout=600)]
            coded = time.monotonic() - began
            if b"<html" not in page or events[-1] != {"done": True}:
                raise SystemExit(f"the page does not answer as it should: {events[-1]}")
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)
    shown = [event["codec"] for event in events if "codec" in event]
    said = [
        f"{address}  (Ctrl-C ends it)",
        f"address after {printed:.1f} s, page after {answered:.1f} s, the photograph coded after {coded:.1f} s:",
        ", ".join(f"{c['name']} {c['bytes']} bytes" for c in shown),
    ]
    at.keep(Entry(title, " ".join(words), "\n".join(said), coded))


def study(at: Newcomer, wheel: str, steps: int) -> None:
    """A first student, its page, and its export."""
    install = f"pip install --quiet '{wheel}[serve,report,export]'"
    at.run("Install what trains", install, size=lambda: at.packages("env"))
    serve(at)
    run = "runs/small/student_enc_dec"
    last = f"{run}/checkpoints/last.ckpt"
    fit = "aeic-lightning fit --config demo/student_enc_dec.yaml"
    fit += "" if steps == 120 else f" --vars.steps={steps} --vars.val_every={steps}"
    at.run("Distil a student", fit, size=lambda: at.megabytes(f"work/{run}"))
    report = f"aeic-lightning report {run} -o report.html"
    at.run("Its page", report, size=lambda: at.megabytes("work/report.html"))
    export = f"aeic-lightning export --checkpoint {last} -o exported"
    at.run("Export it", export, size=lambda: at.megabytes("work/exported"))
    compress = f"aeic-lightning compress photo.png --model {last} -o student --bpp 0.1"
    at.run("A file of the student", compress, size=lambda: at.bytes_of("student/photo.aeic"))
    at.run("Its picture", f"aeic-lightning decompress student/photo.aeic --model {last} -o student")


def device(at: Newcomer) -> None:
    """Another environment, without PyTorch, that sends and receives."""

    def there(title: str, commands: str, size: Callable[[], str] = str) -> None:
        at.run(title, commands, "bare", "device", size)

    packages = "../bare/bin/pip install --quiet numpy onnxruntime constriction"
    there(
        "Another environment",
        f"cp -r ../work/exported/. .\npython3 -m venv ../bare\n{packages}",
        lambda: at.packages("bare"),
    )
    there("Receive", "python receive/receive.py ../work/student/photo.aeic -o pictures")
    there("Reproduce the golden pictures", "python receive/receive.py --check golden")
    there("Pillow, which reads photographs", "pip install --quiet pillow", lambda: at.packages("bare"))
    send = "python send/send.py ../work/photo.png -o streams --bpp 0.1"
    there("Send", send, lambda: at.bytes_of("../device/streams/photo.aeic"))
    there("Reproduce the golden files", "python send/send.py --check golden")
    there("Both sides agree", f"cmp ../work/student/photo.aeic streams/photo.aeic && echo equal files\n{COMPARE}")


COMPARE = """python -c "import numpy as np; from PIL import Image; \
a, b = (np.asarray(Image.open(f'{f}/photo.png')).astype(int) for f in ('pictures', '../work/student')); \
print('pictures differ by at most', abs(a - b).max(), 'of 255')\""""


def markdown(entries: Sequence[Entry], machine: str) -> str:
    """The page: a table of times and sizes, then what was typed and printed."""
    lines = [
        "# A newcomer's log",
        "",
        "From the wheel in an empty environment to a student on a device without PyTorch. This page is written by",
        "`python -m benchmarks.newcomer`, which runs each command outside of the checkout and stops at the first that",
        "fails. An environment's `bin` comes first in `PATH`, as after `source env/bin/activate`.",
        "",
        machine,
        "",
        "| step | seconds | size |",
        "|---|---|---|",
        *(f"| {e.title} | {e.seconds:.1f} | {e.size} |" for e in entries),
        f"| all | {sum(e.seconds for e in entries):.0f} | |",
        "",
        "Sizes of environments are of the packages in site-packages. Of each output, the last lines:",
    ]
    for entry in entries:
        typed = [f"$ {line}" for line in entry.commands.splitlines()]
        printed = [entry.printed] if entry.printed else []
        lines += ["", f"## {entry.title}", "", "```console", *typed, *printed, "```"]
    return "\n".join(lines) + "\n"


def machine(words: str) -> str:
    """What it ran on, in a sentence."""
    info = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*:\s*(.+)", info.read_text() if info.is_file() else "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    version = ".".join(map(str, sys.version_info[:3]))
    return f"On {date.today()}: {name[1] if name else 'a processor'}, {cores} cores{words}, Python {version}."


def main(arguments: Sequence[str] | None = None) -> int:
    """Do it all, and write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.newcomer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "docs/newcomer.md", help="the page")
    parser.add_argument(
        "--torch", default="torch torchvision --index-url https://download.pytorch.org/whl/cpu",
        help="what `pip install` gets first (default: without CUDA, as in the README)",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=120, help="of the student (default: as in the demo)")
    parser.add_argument("--said", default="", help="of the machine, as `, shared with a training`")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this folder, and go on in it")
    args = parser.parse_args(arguments)
    base = args.keep or Path(tempfile.mkdtemp(prefix="newcomer"))
    base.mkdir(parents=True, exist_ok=True)
    kept = base / "log.json"
    at = Newcomer(base.resolve(), [Entry(**e) for e in json.loads(kept.read_text())] if kept.is_file() else [])
    try:
        wheel = install(at, args.torch)
        code(at)
        study(at, wheel, args.steps)
        device(at)
    finally:
        if not args.keep:
            shutil.rmtree(base)
    args.out.write_text(markdown(at.entries, machine(args.said)))
    print(f"written: {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
