"""Damaged and foreign streams from a coverage-guided fuzzer: each must be an error, quickly and in little memory.

    pip install atheris             # Linux, CPython 3.11 to 3.13; the project itself does not need it
    python -m tests.robustness.fuzz [--count 100000] [--coder 20000] [--folder DIR]

There are three targets. Each has a process of its own and a corpus that this script makes.

file     Any bytes as a file. The decoder must refuse them, unless they are a file that the model wrote. Half of the
         count.
behind   Any size, latents check and payload behind a file check that is right, which one damaged file in 2^24 has. The
         decoder must refuse them, or give the latents that the sender had. The other half of the count. Cheap
         functions stand in for the two networks; `tests.robustness.damage` does the same with the networks.
coder    Any bytes as the payload of a few symbols of any tables. The range decoder must report an error, or give the
         values that a decoder in plain integers reads; written again, these values must read the same.

The corpora hold files of several sizes, of models with other weights, other widths, several rates and without skipped
symbols, of other versions of the format and of the arithmetic, and headers that claim other sizes. libFuzzer may not
learn from comparisons (`-use_cmp=0`): it would copy the right check values into its input, and a file whose checks are
all right is not a damaged one.

Prints a table: the checks that refused the inputs, the longest processor time of one input, and the memory: what the
process held before the first input, libraries and models included, and the most that one input added. Memory that the
fuzzer itself collects between inputs does not count. Inputs that decoded wrong, ended in another exception, took longer
than a second, or led to more than 1 GiB in all, are kept in the folder. The exit code is 1 if there are any.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

SECONDS, GIB = 1.0, 1.0
LARGEST_SIDE = 128  # behind the file check: the file of a large image may take long, as it should
REFUSED = {  # by words of the error's message
    "version": "it is no .aeic stream of version",
    "empty": "the file is empty",
    "end of header": "ends within its header",
    "size": "pixels, more than",
    "model": "another checkpoint",
    "file check": "check value of the file",
    "no symbols": "fit no symbols",
    "latents check": "their check value differs",
}
WRONG = {"decoded wrong", "another exception", "too long", "too much memory"}
RIGHT = "decoded to the sender's latents"


# ---------------------------------------------------------------------- models and corpora


def bitstreams() -> dict[str, Any]:
    """The tiny model under test as "own", the same with three rates, and others whose files are foreign to it."""
    from aeic_lightning.bitstream.stream import Bitstream
    from aeic_lightning.models.random_model import CODECS, random_model

    tiny = CODECS["tiny"]
    others = {
        "levels": replace(tiny, rate_levels=[1.0, 0.5, 0.25]),
        "wider": replace(tiny, widths=[16, 32, 48, 64, 128]),
        "no skip": replace(tiny, skip_threshold=None),
    }
    models = {"own": random_model(tiny), "other weights": random_model(tiny, seed=1)}
    models |= {name: random_model(config) for name, config in others.items()}
    return {name: Bitstream(model) for name, model in models.items()}


def stand_in(own: Any) -> Any:
    """A coder with the tables of a bitstream, and quick functions instead of its networks."""
    import torch

    from aeic_lightning.bitstream.stream import LatentCoder
    from aeic_lightning.models.codec.context import QuadtreeContext

    class Context(QuadtreeContext):
        def params(self, base, step):
            mean = (base.flip(1) * 128).round().clamp(-(2**23), 2**23) / 256
            return mean, base.roll(step + 1, 1).abs() * 0.2

    with torch.device("meta"):
        context = Context(4, 4, 0)  # without its networks' weights
    stride = own.shared.grid.z_stride

    def hyper_synthesis(z_hat):
        return z_hat.repeat_interleave(stride, 2).repeat_interleave(stride, 3).repeat(1, 2, 1, 1)

    return LatentCoder(hyper_synthesis, context, own.shared, own.fingerprint)


def write_corpora(folder: Path, made: dict[str, Any]) -> dict[bytes, str]:
    """Write the three targets' corpora to folders of their names.

    Returns the digest of the latents of each genuine file: those of the model under test, and those of the stand-in.
    """
    from aeic_lightning.bitstream import wire
    from aeic_lightning.bitstream.coder import SymbolWriter

    random = np.random.default_rng(0)
    own, quick, genuine = made["own"], stand_in(made["own"]), {}
    corpora: dict[str, list[bytes]] = {"file": [b""], "behind": [], "coder": []}
    for height, width in [(1, 1), (64, 64), (96, 128), (128, 33), (256, 200)]:
        noise = random.uniform(-1, 1, (1, 3, height, width)) * random.choice([0.1, 1.0])
        x = torch.from_numpy(noise.astype(np.float32))
        for name, bitstream in made.items():
            encoded = bitstream.encode_fully(x)
            data = encoded.data
            stream = wire.unpack(data, bitstream.fingerprint, bitstream.levels > 0)
            corpora["file"] += [data, bytes([data[0] - 1]) + data[1:], bytes([data[0] + 1]) + data[1:]]
            # As a model of another arithmetic would write it, whose fingerprint differs.
            arithmetic = hashlib.sha256(b"aeic arithmetic 1" + bitstream.fingerprint).digest()
            corpora["file"].append(wire.pack(stream._replace(level=None), arithmetic))
            if max(height, width) <= LARGEST_SIDE:
                corpora["behind"].append(bytes([height - 1, width - 1]) + stream.check + stream.payload)
            if name == "own":
                genuine[data] = digest(encoded)
        if max(height, width) <= LARGEST_SIDE:
            encoded = quick.encode_latents(*own.sender(x), height, width)
            stream = wire.unpack(encoded.data, own.fingerprint)
            corpora["behind"].append(bytes([height - 1, width - 1]) + stream.check + stream.payload)
            genuine[encoded.data] = digest(encoded)
    data = next(iter(genuine))
    for side in (b"\xff\x3f", b"\xff\x7f", b"\xff\xff", b"\xff\xff\xff"):
        corpora["file"] += [data[:1] + side * 2 + data[3:], data[:1] + side + data[2:], data[:1] + side]
    for count in (1, 5, 30):
        numbers = np.sort(random.integers(0, 64, count))
        writer = SymbolWriter()
        writer.write(random.integers(-300, 300, count).astype(np.int32), numbers, own.shared.y_tables)
        corpora["coder"].append(bytes([count, *numbers]) + writer.getvalue())
    for target, inputs in corpora.items():
        (folder / target).mkdir(parents=True, exist_ok=True)
        for data in inputs:
            (folder / target / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    return genuine


def digest(latents: Any) -> str:
    """SHA-256 of z_hat and y_hat."""
    return hashlib.sha256(b"".join(part.tobytes() for part in latents.integers())).hexdigest()


# ---------------------------------------------------------------------- targets: input -> outcome


def refused_by(error: Exception) -> str:
    """The check that an error speaks of. Raises KeyError for an error that is none of them."""
    for check, words in REFUSED.items():
        if words in str(error):
            return check
    raise KeyError(str(error)) from error


def file_target(made: dict[str, Any], genuine: dict[bytes, str]) -> Callable[[bytes], str]:
    """Any bytes as a file of a model of one rate, and of one of several."""
    from aeic_lightning.bitstream import wire
    from aeic_lightning.errors import UserError

    own, levels = made["own"], made["levels"]

    def target(data: bytes) -> str:
        try:
            model = wire.model_of(data)
        except UserError:
            model = b""
        try:
            levels.decode(data)
            if model != levels.fingerprint[:2]:
                return "decoded wrong"
        except UserError as error:
            refused_by(error)
        try:
            decoded = own.decode(data)
        except UserError as error:
            return refused_by(error)
        return RIGHT if digest(decoded) == genuine.get(data) else "decoded wrong"

    return target


def behind_target(made: dict[str, Any], genuine: dict[bytes, str]) -> Callable[[bytes], str]:
    """Any size, latents check and payload behind a file check that is right."""
    from aeic_lightning.bitstream import wire
    from aeic_lightning.errors import UserError

    coder = stand_in(made["own"])
    known = {wire.unpack(data, coder.fingerprint).check: latents for data, latents in genuine.items()}

    def target(data: bytes) -> str:
        data = data.ljust(5, b"\0")
        stream = wire.Stream(data[0] % LARGEST_SIDE + 1, data[1] % LARGEST_SIDE + 1, data[2:5], data[5:])
        try:
            decoded = coder.decode(wire.pack(stream, coder.fingerprint))
        except UserError as error:
            return refused_by(error)
        # A payload with other bytes behind its end holds the same symbols.
        return RIGHT if digest(decoded) == known.get(stream.check) else "decoded wrong"

    return target


def coder_target(made: dict[str, Any], genuine: dict[bytes, str]) -> Callable[[bytes], str]:
    """Any bytes as the payload of up to 30 symbols of any tables."""
    from aeic_lightning.bitstream.coder import SymbolReader, SymbolWriter
    from aeic_lightning.bitstream.wire import LARGEST
    from tests.bitstream.test_range_coder import reference_decode

    tables = made["own"].shared.y_tables

    def target(data: bytes) -> str:
        count = data[0] % 31 if data else 0
        numbers = np.sort(np.frombuffer(data[1 : 1 + count], np.uint8) % 64).astype(np.int64)
        payload = data[1 + count :]
        try:
            values = SymbolReader(payload).read(numbers, tables)
        except AssertionError:
            return "no symbols"
        low = np.array([tables[n].low for n in numbers], np.int64)
        high = -low
        escaped = (values < low) | (values > high)
        expected = np.array(reference_decode(payload, numbers, tables), np.int64)
        # The reference reads an escape as the symbol behind the table's end.
        if (expected[~escaped] != values[~escaped]).any() or (expected[escaped] != high[escaped] + 1).any():
            return "decoded wrong"
        if (np.abs(values) <= LARGEST).all():
            writer = SymbolWriter()
            writer.write(values, numbers, tables)
            if (SymbolReader(writer.getvalue()).read(numbers, tables) != values).any():
                return "decoded wrong"
        return "as the reference" if not escaped.any() else "as the reference, with escapes"

    return target


TARGETS = {"file": file_target, "behind": behind_target, "coder": coder_target}


# ---------------------------------------------------------------------- the fuzzing process


def memory() -> tuple[float, float]:
    """What this process holds and what it has held at most, GiB. Reads Linux's /proc."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(lines[name].split()[0]) / 2**20 for name in ("VmRSS", "VmHWM"))


def fuzz(name: str, count: int, folder: Path) -> None:
    """Fuzz one target in this process, which ends after `count` inputs and leaves `NAME.json` in the folder."""
    import atheris

    modules = ["wire", "stream", "tables"]
    with atheris.instrument_imports(include=[f"aeic_lightning.bitstream.{module}" for module in modules]):
        import aeic_lightning.bitstream.stream  # noqa: F401  (with its coverage counted)
    torch.set_num_threads(1)
    made = bitstreams()
    genuine = write_corpora(folder, made)
    target = TARGETS[name](made, genuine)
    outcomes: Counter[str] = Counter()
    longest, most, tried = 0.0, 0.0, 0
    base = memory()[1]
    (folder / "findings").mkdir(exist_ok=True)

    def one_input(data: bytes) -> None:
        nonlocal longest, most, tried
        held, highest = memory()
        start = time.process_time()  # a busy machine makes the clock useless
        try:
            outcome = target(data)
        except BaseException as error:  # a panic of a compiled library is no Exception
            outcome = "another exception"
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        took = time.process_time() - start
        now = memory()[1]
        added = now - held if now > highest else 0.0
        longest, most, tried = max(longest, took), max(most, added), tried + 1
        found = {outcome} | ({"too long"} if took > SECONDS else set())
        found |= {"too much memory"} if base + added > GIB else set()
        outcomes.update(found)
        if found & WRONG:
            (folder / "findings" / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)
        if tried == count:
            result = {"outcomes": outcomes, "longest": longest, "base": base, "most": most}
            (folder / f"{name}.json").write_text(json.dumps(result))
            sys.stderr.flush()
            os._exit(0)  # libFuzzer would not return

    words = ["-use_cmp=0", "-seed=1", "-max_len=8192", "-rss_limit_mb=0", f"-artifact_prefix={folder}/", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *words, str(folder / name)], one_input)
    atheris.Fuzz()


def counts(streams: int, coder: int = 20_000) -> dict[str, int]:
    """Inputs of each target."""
    return {"file": streams - streams // 2, "behind": streams // 2, "coder": coder}


def table(counts: dict[str, int], folder: Path) -> tuple[list[str], bool]:
    """Fuzz all targets, each in a process of its own: a Markdown table, and whether all went well."""
    lines = [
        "| target | inputs | outcomes | longest, s | memory before, GiB | added by one, MiB |",
        "|---|---|---|---|---|---|",
    ]
    if find_spec("atheris") is None:
        raise SystemExit("atheris is not installed: pip install atheris (Linux, CPython 3.11 to 3.13)")
    well = True
    for name, count in counts.items():
        (folder / f"{name}.json").unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.robustness.fuzz", "--target", name, "--count", str(count)]
        done = subprocess.run([*command, "--folder", str(folder)], check=False, capture_output=True, text=True)
        try:
            result = json.loads((folder / f"{name}.json").read_text())
        except OSError:
            raise SystemExit(f"the fuzzer of {name} ended early:\n{done.stderr[-3000:]}") from None
        outcomes = sorted(result["outcomes"].items(), key=lambda item: -item[1])
        words = ", ".join(f"{outcome} {number:,}" for outcome, number in outcomes)
        lines.append(
            f"| {name} | {count:,} | {words} | {result['longest']:.2f} | {result['base']:.2f} "
            f"| {1024 * result['most']:.0f} |"
        )
        well &= not set(result["outcomes"]) & WRONG
    return lines, well


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="streams of the targets file and behind")
    parser.add_argument("--coder", type=int, default=20_000, help="payloads of a few symbols")
    parser.add_argument("--folder", type=Path, help="keep corpora and findings there (default: a temporary folder)")
    parser.add_argument("--target", choices=TARGETS, help=argparse.SUPPRESS)  # the process that fuzzes
    args = parser.parse_args()
    if args.target:
        fuzz(args.target, args.count, args.folder)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    lines, well = table(counts(args.count, args.coder), folder)
    print("\n".join(lines))
    if not well:
        print(f"inputs that went wrong: {folder}/findings")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
