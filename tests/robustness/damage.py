"""Damaged streams: each must be an error, quickly and in little memory.

    python -m tests.robustness.damage [--count 20000] [--behind 300] [--checkpoint CKPT]

Streams of a few sizes are damaged by bit flips, truncation, extension, bytes overwritten or swapped, headers of other
sizes and of other streams, and streams of another checkpoint. The check value of the file catches them before anything
is decoded, all but one in 2^24; so that the second check value is put to work too, `--behind` adds streams whose
payload is damaged and whose file check is then made right. Prints a row for each kind of damage: how many gave an
error, a picture, or another exception; then the longest time and the process's peak memory. Exit code 1 unless every
damaged stream is an error within 2 s, and memory stays within 1 GiB.
"""

import argparse
import sys
import time
from collections import Counter

import numpy as np
import torch

from aeic_lightning.bitstream import wire
from aeic_lightning.bitstream.stream import Bitstream
from aeic_lightning.checkpoints.checkpoint import load_model
from aeic_lightning.errors import UserError
from aeic_lightning.models.random_model import CODECS, random_model
from aeic_lightning.timing import peak_memory

SIZES = [(1, 1), (64, 64), (96, 200), (256, 256), (300, 451)]


def damage(data: bytes, others: list[bytes], foreign: list[bytes], random: np.random.Generator) -> tuple[str, bytes]:
    """One kind of damage, by its name, and what it makes of a stream."""
    kind = random.choice(["flip", "flips", "truncate", "extend", "overwrite", "swap", "size", "header", "foreign"])
    changed = bytearray(data)
    at = int(random.integers(len(data)))
    if kind in ("flip", "flips"):
        for _ in range(1 if kind == "flip" else int(random.integers(2, 20))):
            changed[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
    elif kind == "truncate":
        changed = changed[:at]
    elif kind == "extend":
        changed += random.bytes(int(random.integers(1, 40))) if random.random() < 0.5 else bytes(at + 1)
    elif kind == "overwrite":
        changed[at : at + 8] = random.bytes(len(changed[at : at + 8]))
    elif kind == "swap":
        other = int(random.integers(len(data)))
        changed[at], changed[other] = changed[other], changed[at]
    elif kind == "size":
        # A header that claims up to 8192x8192 pixels.
        changed = bytearray(data[:1] + bytes([255, int(random.integers(1, 64))] * 2) + data[-int(min(len(data), 30)) :])
    elif kind == "header":
        other = others[int(random.integers(len(others)))]
        cut = int(random.integers(1, 14))
        changed = bytearray(other[:cut] + data[cut:])
    else:
        changed = bytearray(foreign[int(random.integers(len(foreign)))])
    return str(kind), bytes(changed)


def behind(data: bytes, fingerprint: bytes, random: np.random.Generator) -> tuple[str, bytes]:
    """A damaged payload behind a file check that fits."""
    stream = wire.unpack(data, fingerprint)
    payload = bytearray(stream.payload)
    payload[int(random.integers(len(payload)))] ^= 1 << int(random.integers(8))
    if random.random() < 0.3:
        payload = payload[: int(random.integers(len(payload)))]
    return "behind the file check", wire.pack(stream._replace(payload=bytes(payload)), fingerprint)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--behind", type=int, default=300)
    parser.add_argument("--checkpoint", help="by default, random weights at the size of the tiny study")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(args.checkpoint) if args.checkpoint else random_model(CODECS["tiny"])
    bitstream = Bitstream(model)
    other = Bitstream(random_model(model.codec.config, seed=1))
    random = np.random.default_rng(0)
    pictures = [torch.from_numpy(random.uniform(-1, 1, (1, 3, *size)).astype(np.float32)) for size in SIZES]
    streams, foreign = [bitstream.encode(x) for x in pictures], [other.encode(x) for x in pictures]
    valid = set(streams)

    outcomes, longest, undamaged = Counter(), 0.0, 0
    while outcomes.total() < args.count + args.behind:
        data = streams[int(random.integers(len(streams)))]
        if outcomes.total() < args.count:
            kind, data = damage(data, streams, foreign, random)
        else:
            kind, data = behind(data, bitstream.fingerprint, random)
        if data in valid:
            undamaged += 1  # such as two equal bytes swapped: not damage
            continue
        start = time.perf_counter()
        try:
            bitstream.decode(data)
            outcome = "picture"
        except UserError:
            outcome = "error"
        except Exception as error:
            outcome = f"exception {type(error).__name__}"
        longest = max(longest, time.perf_counter() - start)
        outcomes[kind, outcome] += 1
    memory = peak_memory()
    columns = sorted({"error", "picture"} | {outcome for _, outcome in outcomes})
    print(f"{'damage':<24}" + "".join(f"{column:>12}" for column in columns))
    for kind in sorted({kind for kind, _ in outcomes}):
        print(f"{kind:<24}" + "".join(f"{outcomes[kind, column]:>12}" for column in columns))
    print(
        f"{'all':<24}" + "".join(f"{sum(n for (_, c), n in outcomes.items() if c == column):>12}" for column in columns)
    )
    print(f"longest {longest:.3f} s, peak memory of the process {memory:.2f} GiB; {undamaged} were left as they were")
    return 0 if {outcome for _, outcome in outcomes} == {"error"} and longest < 2 and memory < 1 else 1


if __name__ == "__main__":
    sys.exit(main())
