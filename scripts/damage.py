"""Damaged streams: each must be an error, quickly and in little memory.

    python scripts/damage.py --count 20000 [--checkpoint CKPT]

Streams of a few sizes are damaged by bit flips, truncation, extension, bytes overwritten or swapped, headers of other
sizes and of other streams, and streams of another checkpoint. Prints how many gave an error, a picture, the undamaged
latents (damage that changed nothing), or another exception; the longest time, and the process's peak memory. Exit
code 1 unless every damaged stream is an error within 2 s, and memory stays within 1 GiB.
"""

import argparse
import resource
import sys
import time
from collections import Counter

import numpy as np
import torch

from aeic_lightning import UserError
from aeic_lightning.bitstream.random_model import CODECS, random_model
from aeic_lightning.bitstream.stream import Bitstream
from aeic_lightning.weights.checkpoint import load_model

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
    return kind, bytes(changed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
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

    outcomes, kinds, longest, undamaged = Counter(), Counter(), 0.0, 0
    while sum(outcomes.values()) < args.count:
        kind, data = damage(streams[int(random.integers(len(streams)))], streams, foreign, random)
        if data in valid:
            undamaged += 1  # such as two equal bytes swapped: not damage
            continue
        start = time.perf_counter()
        try:
            bitstream.decode(data)
            outcome = "PICTURE"
        except UserError:
            outcome = "error"
        except Exception as error:
            outcome = f"EXCEPTION {type(error).__name__}"
        longest = max(longest, time.perf_counter() - start)
        outcomes[outcome] += 1
        kinds[kind] += 1
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("damage:  ", dict(sorted(kinds.items())))
    print("outcomes:", dict(outcomes), f"; {undamaged} more were left as they were")
    print(f"longest {longest:.3f} s, peak memory of the whole process {memory:.2f} GiB")
    return 0 if set(outcomes) == {"error"} and longest < 2 and memory < 1 else 1


if __name__ == "__main__":
    sys.exit(main())
