"""Small files of the kinds that a full-size system starts from, made by the libraries that write the real ones."""

import re
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.autoencoders.vae import Decoder

from aeic_lightning.models.aeic import AEIC


def small_unet(widths: list[int], heads: list[int]) -> UNet2DConditionModel:
    """With time embedding and cross-attention, randomly filled throughout."""
    lower = len(widths) - 1
    unet = UNet2DConditionModel(
        block_out_channels=widths,
        attention_head_dim=heads,
        down_block_types=("CrossAttnDownBlock2D",) * lower + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * lower,
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        use_linear_projection=True,
    )
    for p in unet.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return unet.eval()


def small_vae() -> Decoder:
    """Four latent channels, as every Stable Diffusion decoder."""
    vae = Decoder(
        in_channels=4, block_out_channels=(8, 8, 8, 16), up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=0,
        norm_num_groups=4,
    )  # fmt: skip
    for p in vae.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return vae.eval()


def save_base(folder: Path, unet: UNet2DConditionModel, vae: Decoder) -> tuple[Path, Path]:
    """A diffusers folder, and a checkpoint of the VAE decoder."""
    unet.save_pretrained(folder / "turbo" / "unet")
    state = {f"decoder.{name}": tensor for name, tensor in vae.state_dict().items()}
    torch.save({"state_dict": state | {"loss.weight": torch.ones(1)}}, folder / "half.ckpt")
    return folder / "turbo", folder / "half.ckpt"


def as_released(model: AEIC) -> dict:
    """Write a model the way that the authors' code names its parts."""
    inner = {"g_a": "analysis_transform", "h_a": "reduction", "h_s": "increase", "g_s": "synthesis_transform"}
    codec = {"gaussian_conditional.scale_table": torch.ones(64), "entropy_bottleneck._quantized_cdf": torch.ones(1)}
    for name, tensor in model.codec.state_dict().items():
        first, _, rest = name.partition(".")
        if first in inner:
            name = f"{first}.{inner[first]}.{rest.replace('.conv.', '.body.0.')}"
        elif rest.startswith("adapter_"):
            name = rest
        elif rest.startswith("g_c."):
            _, layer, half, rest = rest.split(".", 3)
            name = f"g_c.block.{layer}.blocks.{half}.{rest}"
        elif name == "prior.quantiles":
            name, tensor = "entropy_bottleneck.quantiles", tensor[:, None]
        else:
            kind, number = rest.split(".")
            kind = {"matrices": "matrix", "biases": "bias", "factors": "factor"}[kind]
            name = f"entropy_bottleneck._{kind}{number}"
        codec[name] = tensor
    unet = {}
    for name, tensor in model.decoder.state_dict().items():
        name = name.removeprefix("denoiser.").removeprefix("trunk.")
        unet[re.sub(r"\.lora_([AB])\.weight$", r".lora_\1.default.weight", name)] = tensor
    return {"state_dict_codec": codec, "state_dict_unet": unet}


def small_sizes(turbo: Path, half: Path) -> dict:
    """An experiment file that makes a stage of experiments/paper small, on a CPU, over a base of `small_unet` with four
    resolutions. Depths, LoRA, losses and all else stay the stage's own."""
    codec = {"context_width": 16, "synthesis_widths": [32, 24, 16], "l_T_channels": 12, "l_res_channels": 8}
    decoder = {
        "unet": {"widths": [8, 8, 16, 16], "heads": [1, 1, 2, 2], "layers": 1, "groups": 4},
        "vae": {"widths": [8, 8, 8, 16], "layers": 0, "groups": 4},
        "tiling": {"unet_tile": 16, "unet_overlap": 8, "vae_tile": 24, "vae_overlap": 8},
    }
    return {
        "vars": {"unet": str(turbo), "vae": str(half), "crop": 128, "batch": 1, "accumulate": 1, "workers": 0},
        "data": {"init_args": {"pin_memory": False}},
        "model": {"init_args": {"codec": codec, "decoder": decoder}},
        "trainer": {"accelerator": "cpu"},
    }
