"""Which settings change the last digits of h_s and the context in plain float32, and in exact arithmetic.

    python -m benchmarks.float_drift [--size tiny|AEIC-SE] [--checkpoint CKPT]

Each setting runs in a process of its own. Prints, for float32 and for the exact arithmetic, how many of the values that
decide on symbols (means and scales of the four steps) differ from the reference: one thread, oneDNN, channels first.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aeic_lightning.bitstream.exact import Context, HyperSynthesis, exact_mode
from aeic_lightning.checkpoints.checkpoint import load_model
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.random_model import CODECS, random_model, save

SETTINGS = {
    "reference": ({}, {}),
    "the same again": ({}, {}),
    "2 threads": ({"threads": 2}, {}),
    "oneDNN off": ({"onednn": False}, {}),
    "oneDNN up to AVX2": ({}, {"ONEDNN_MAX_CPU_ISA": "AVX2"}),
    "PyTorch without AVX": ({}, {"ATEN_CPU_CAPABILITY": "default"}),
    "channels last": ({"channels_last": True}, {}),
    "batch of 2": ({"batch": 2}, {}),
    "matmul precision medium": ({"medium": True}, {}),
    "torch.compile": ({"compile": True}, {}),
}


def latents(job: dict) -> np.ndarray:
    torch.set_num_threads(job.get("threads", 1))
    torch.backends.mkldnn.enabled = job.get("onednn", True)
    if job.get("medium"):
        torch.set_float32_matmul_precision("medium")
    model = load_model(job["checkpoint"])
    assert isinstance(model, AEIC)
    codec = model.codec
    h_s: Any = codec.h_s
    context: Any = codec.context
    if job["exact"]:
        h_s, context = HyperSynthesis(h_s), Context(context)
    if job.get("channels_last"):
        h_s, context = h_s.to(memory_format=torch.channels_last), context.to(memory_format=torch.channels_last)
    batch = job.get("batch", 1)
    random = np.random.default_rng(0)
    z_hat = torch.from_numpy(random.integers(-4, 5, (1, codec.prior.channels, 6, 8)).astype(np.float32))
    noise = torch.from_numpy(random.normal(0, 2, (1, codec.channels, 24, 32)).astype(np.float32))
    z_hat, noise = z_hat.expand(batch, -1, -1, -1), noise.expand(batch, -1, -1, -1)
    params = torch.compile(context.params) if job.get("compile") and not job["exact"] else context.params
    values = []
    with exact_mode() if job["exact"] else torch.inference_mode():
        base = h_s(z_hat)
        for step in range(4):
            mean, scale = params(base, step)
            values += [mean[0].numpy().ravel(), scale[0].numpy().ravel()]
            base = base + 0.1 * noise
    return np.concatenate(values)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=CODECS, default="tiny")
    parser.add_argument("--checkpoint", default="")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        np.save(args.output, latents(json.loads(args.job)))
        return 0
    print(f"{'setting':<26}{'float32: values that differ':>30}{'largest':>10}{'exact: values that differ':>28}")
    drifted = 0
    with tempfile.TemporaryDirectory() as scratch:
        if not args.checkpoint:  # as a file: torch.randn itself depends on the instruction set
            args.checkpoint = f"{scratch}/random.ckpt"
            save(random_model(CODECS[args.size]), Path(args.checkpoint))
        reference = {}
        for name, (changes, environment) in SETTINGS.items():
            row = f"{name:<26}"
            for exact in (False, True):
                job = {"checkpoint": args.checkpoint, "exact": exact, **changes}
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.float_drift",
                    "--job",
                    json.dumps(job),
                    "--output",
                    f"{scratch}/out.npy",
                ]
                if subprocess.run(command, env={**os.environ, **environment}, capture_output=True).returncode:
                    row += f"{'cannot run here':>{28 if exact else 40}}"
                    continue
                values = np.load(f"{scratch}/out.npy")
                different = np.abs(values - reference.setdefault(exact, values))
                count = int((different > 0).sum())
                drifted += count if exact else 0
                row += f"{count:>22} of {len(values)}" + ("" if exact else f"{different.max():>10.1e}")
            print(row, flush=True)
    return 1 if drifted else 0


if __name__ == "__main__":
    sys.exit(main())
