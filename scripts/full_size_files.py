"""Files like those that a full-size run starts from, with random weights: for measurements without a download.

    python scripts/full_size_files.py FOLDER

writes, in the formats and under the names of the released ones (2.8 GB),

    FOLDER/sd-turbo/unet/       SD-Turbo's U-Net, by `save_pretrained` in float16
    FOLDER/halfDecoder.ckpt     the half-width VAE decoder, as AdcSR's checkpoint holds it
    FOLDER/AEIC_ME.pkl, AEIC_SE.pkl
"""

import sys
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from aeic_lightning import memory
from aeic_lightning.models.decoder import DecoderConfig, OneStepDecoder

sys.path.append(str(Path(__file__).parents[1] / "tests" / "conformance"))
from recorded import codec_weights, unet_weights
from reference_weights import fill

# What differs from the defaults of diffusers, which are those of Stable Diffusion 1.
SD_TURBO = {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True}


def make_files(folder: Path) -> Path:
    """Write what is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "sd-turbo").exists():
        with torch.device("meta"):
            unet = UNet2DConditionModel(**SD_TURBO)
        unet.load_state_dict(
            {name: _filled("unet.", name, p).half() for name, p in unet.named_parameters()}, assign=True
        )
        unet.save_pretrained(folder / "sd-turbo" / "unet", variant="fp16")
    with torch.device("meta"):
        vae = OneStepDecoder(4, 4, DecoderConfig()).vae
    state = {f"decoder.{name}": _filled("vae.decoder.", name, p) for name, p in vae.named_parameters()}
    torch.save({"state_dict": state}, folder / "halfDecoder.ckpt")
    for model in ("me", "se"):
        released = {"state_dict_codec": codec_weights(f"keys_codec_{model}.tsv"), "state_dict_unet": unet_weights()}
        torch.save(released, folder / f"AEIC_{model.upper()}.pkl")
    return folder


def peak_memory() -> float:
    """Largest resident memory so far, or since `reset_peak_memory`, in GB. Linux."""
    return memory.peak_memory() * 2**30 / 1e9


def reset_peak_memory() -> None:
    """Forget the peak of what came before."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _filled(prefix: str, name: str, p: Tensor) -> Tensor:
    return torch.from_numpy(fill(prefix + name, tuple(p.shape)))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    make_files(Path(sys.argv[1]))
