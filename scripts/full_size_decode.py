"""Decode one image at full size on a CPU with random weights: time and peak memory, whole and in tiles.

    python scripts/full_size_decode.py [--size 512x768] [--threads 2]

From quantised latents to pixels: g_s, the denoiser, the VAE decoder. Each case runs in a process of its own. The
weights (about 3.6 GB) are counted in the peak and given apart.
"""

import argparse
import subprocess
import sys
import time

import torch
from random_base import peak_memory, reset_peak_memory, use_random_base

from aeic_lightning.decoder import TilingConfig
from aeic_lightning.model import AEIC
from aeic_lightning.weights.released import RELEASED

CASES = {
    "whole": None,
    "tiles of 48 latents": TilingConfig(unet_tile=48, unet_overlap=16, vae_tile=48, vae_overlap=16),
    "tiles of 32 latents": TilingConfig(unet_tile=32, unet_overlap=8, vae_tile=32, vae_overlap=8),
}


def decode(case: str, height: int, width: int) -> None:
    """Run one case in this process."""
    use_random_base()
    codec, decoder = RELEASED["AEIC-SE"]
    decoder.tiling = CASES[case]
    model = AEIC(codec, decoder).eval()
    model.decoder.load_base()
    y_hat = torch.randn(1, codec.widths[-1], height // 32, width // 32)
    reset_peak_memory()
    weights = peak_memory()
    start = time.monotonic()
    with torch.inference_mode():
        x_hat = model.decoder(*model.codec.synthesise(y_hat)).x_hat
    seconds = time.monotonic() - start
    assert x_hat.shape == (1, 3, height, width)
    print(f"{case}: {seconds:.1f} s, peak memory {peak_memory():.2f} GB, of it {weights:.2f} GB before", flush=True)


def main() -> int:
    """Each case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="512x768", metavar="HxW", help="multiples of 64")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.case:
        decode(args.case, *map(int, args.size.split("x")))
        return 0
    command = [sys.executable, __file__, "--size", args.size, "--threads", str(args.threads)]
    return max(subprocess.run([*command, "--case", case]).returncode for case in CASES)


if __name__ == "__main__":
    sys.exit(main())
