"""Files like those that a full-size run starts from, with random weights: for measurements without a download.

    python -m benchmarks.full_size_files FOLDER

writes, in the formats and under the names of the released ones (2.8 GB),

    FOLDER/sd-turbo/unet/       SD-Turbo's U-Net, by `save_pretrained` in float16
    FOLDER/halfDecoder.ckpt     the half-width VAE decoder, as AdcSR's checkpoint holds it
    FOLDER/AEIC_ME.pkl, AEIC_SE.pkl
"""

import math
import sys
import zlib
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from aeic_lightning import timing
from aeic_lightning.models.decoder import DecoderConfig, OneStepDecoder

KEYS = Path(__file__).parents[1] / "tests" / "conformance" / "data"
"""Tables of the names and shapes of the released checkpoints' tensors."""

# What differs from the defaults of diffusers, which are those of Stable Diffusion 1.
SD_TURBO = {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True}


def make_files(folder: Path) -> Path:
    """Write what is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "sd-turbo").exists():
        with torch.device("meta"):
            unet = UNet2DConditionModel(**SD_TURBO)
        unet.load_state_dict({name: _filled(name, p.shape).half() for name, p in unet.named_parameters()}, assign=True)
        unet.save_pretrained(folder / "sd-turbo" / "unet", variant="fp16")
    with torch.device("meta"):
        vae = OneStepDecoder(4, 4, DecoderConfig()).vae
    state = {f"decoder.{name}": _filled(name, p.shape) for name, p in vae.named_parameters()}
    torch.save({"state_dict": state}, folder / "halfDecoder.ckpt")
    for model in ("me", "se"):
        released = {
            "state_dict_codec": _table(f"keys_codec_{model}.tsv"),
            "state_dict_unet": _table("keys_unet_trained.tsv"),
        }
        torch.save(released, folder / f"AEIC_{model.upper()}.pkl")
    return folder


def peak_memory() -> float:
    """Largest resident memory so far, or since `reset_peak_memory`, in GB. Linux."""
    return timing.peak_memory() * 2**30 / 1e9


def reset_peak_memory() -> None:
    """Forget the peak of what came before."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _table(file: str) -> dict[str, Tensor]:
    rows = (line.split("\t") for line in (KEYS / file).read_text().splitlines())
    return {name: _filled(name, tuple(map(int, shape.split("x")))) for name, shape in rows}


def _filled(name: str, shape: tuple[int, ...]) -> Tensor:
    """Random values that keep activations at an ordinary scale, the same for the same name."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name.startswith("entropy_bottleneck."):
        # The prior as it is before training, ten wide; the filters' widths are 3.
        if "_matrix" in name:
            return math.log(math.expm1(10 ** (-1 / 5) / shape[1])) + 0.1 * noise
        return noise[..., :1] + torch.tensor([-10.0, 0.0, 10.0]) if name.endswith("quantiles") else 0.1 * noise
    if "norm" in name and name.endswith(".weight"):
        return 1 + 0.1 * noise
    return noise / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.1 * noise


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    make_files(Path(sys.argv[1]))
