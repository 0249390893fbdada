"""Decode one image at full size on a CPU with random weights: time and peak memory, whole and in tiles.

    python -m benchmarks.full_size_decode [--size 512x768] [--threads 2] [--files FOLDER]

From quantised latents to pixels: g_s, the denoiser, the VAE decoder. Each case runs in a process of its own, on the
files of `full_size_files` (in a temporary folder or in FOLDER). AEIC-SE's own tiles, 192 latents a side, are larger
than the image, so smaller ones show what tiling costs and saves.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from aeic_lightning.checkpoints.checkpoint import load_model
from aeic_lightning.checkpoints.released import import_released
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.decoder import PretrainedConfig, TilingConfig
from benchmarks.full_size_files import make_files, peak_memory, reset_peak_memory

CASES = {
    "whole": None,
    "tiles of 48 latents": TilingConfig(unet_tile=48, unet_overlap=16, vae_tile=48, vae_overlap=16),
    "tiles of 32 latents": TilingConfig(unet_tile=32, unet_overlap=8, vae_tile=32, vae_overlap=8),
}


def decode(case: str, height: int, width: int, files: Path) -> None:
    """Run one case in this process."""
    base = PretrainedConfig(unet=str(files / "sd-turbo"), vae=str(files / "halfDecoder.ckpt"))
    with tempfile.TemporaryDirectory() as folder:
        import_released(files / "AEIC_SE.pkl", Path(folder, "se.ckpt"), base)
        model = load_model(Path(folder, "se.ckpt"))
    assert isinstance(model, AEIC)
    model.decoder.config.tiling = CASES[case]
    y_hat = torch.randn(1, model.codec.channels, height // 32, width // 32)
    reset_peak_memory()
    weights = peak_memory()
    start = time.monotonic(), time.process_time()
    with torch.inference_mode():
        x_hat = model.decoder(*model.codec.synthesise(y_hat)).x_hat
    wall, cpu = time.monotonic() - start[0], time.process_time() - start[1]
    assert x_hat.shape == (1, 3, height, width)
    print(
        f"{case}: {wall:.1f} s, {cpu:.1f} s of processor time, peak memory {peak_memory():.2f} GB, "
        f"of it {weights:.2f} GB before",
        flush=True,
    )


def main() -> int:
    """Each case in a process of its own, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="512x768", metavar="HxW", help="multiples of 64")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--files", type=Path, help="folder that full_size_files wrote")
    parser.add_argument("--case", choices=list(CASES), help="this one alone, in this process")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.files and args.case:
        height, width = map(int, args.size.split("x"))
        decode(args.case, height, width, args.files)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        files = args.files or make_files(Path(folder))
        command = [
            sys.executable,
            "-m",
            "benchmarks.full_size_decode",
            "--size",
            args.size,
            "--threads",
            str(args.threads),
        ]
        command += ["--files", str(files), "--case"]
        cases = [args.case] if args.case else list(CASES)
        return max(subprocess.run([*command, case]).returncode for case in cases)


if __name__ == "__main__":
    sys.exit(main())
