"""`optimization.bfloat16` against float32: what a step takes, and what a training comes to.

    python -m benchmarks.precision step experiments/long/teacher_stage1.yaml [--batch 8] [--crop 128] [--turns 7]
    python -m benchmarks.precision train [--steps 2000] [--seeds 1 2] [--crop 64]

`step` runs the forms in turn, in processor seconds of this process. `train` trains a very small model in each form from
each seed on the sample photographs, and prints what validation finds: two forms are as good as each other where they
differ by no more than two seeds do.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from aeic_lightning.images import from_uint8, read_image
from aeic_lightning.losses.objective import Objective
from aeic_lightning.metrics.features import LPIPS
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import DecoderConfig, UNetConfig, VAEConfig
from aeic_lightning.models.layers import networks_in_bfloat16
from aeic_lightning.timing import compare
from benchmarks.steps import ExperimentStep
from datamodules.sample_photos import TRAIN, VAL

FORMS = ("float32", "bf16-mixed", "bfloat16")


def step(config: Path, batch: int, crop: int, turns: int) -> None:
    """Time one step of an experiment in each form, with random weights on a smooth picture."""
    one = ExperimentStep(config, batch, crop)

    def run(form: str) -> Callable[[], None]:
        def call() -> None:
            one.low = form == "bfloat16"
            with torch.autocast("cpu", torch.bfloat16) if form == "bf16-mixed" else nullcontext():
                one()

        return call

    for name, timed in compare({form: run(form) for form in FORMS}, turns).items():
        print(f"{name:12} {timed.processor:.3f} s, ratio {timed.processor_ratio:.3f}")


def photographs(files: tuple[tuple[str, str], ...]) -> list[Tensor]:
    """Each (3, H, W) in [-1, 1], at half of its size."""
    paths = [Path(import_module(package).__file__ or "").parent / file for package, file in files]
    images = [from_uint8(torch.from_numpy(read_image(path)).permute(2, 0, 1)[None]) for path in paths]
    return [torch.nn.functional.avg_pool2d(image, 2)[0] for image in images]


def train(steps: int, seeds: Sequence[int], crop: int) -> None:
    """Train a small model in each form from each seed, and print rate and quality of the photographs for validation.

    Each form of a seed starts from the same weights and sees the same crops.
    """
    codec = CodecConfig(
        [8, 16, 24, 32, 48], [1] * 5, context_width=24, context_depth=1, synthesis_widths=[32, 24, 16],
        synthesis_depths=[1] * 3, l_T_channels=16, l_res_channels=12,
    )  # fmt: skip
    unet = UNetConfig(widths=[16, 24, 24], heads=[1, 1, 1], layers=1, groups=8, attention=[False, False, True])
    decoder = DecoderConfig(unet, VAEConfig(widths=[12, 16, 24], layers=0, groups=0, attention=False, patch=2))
    photos, held_out = photographs(TRAIN), photographs(VAL)
    for seed in seeds:
        for form in ("float32", "bfloat16"):
            torch.manual_seed(seed)
            model = AEIC(codec, decoder).train().to(memory_format=torch.channels_last)
            rate = {"weight": 1.0, "warmup_steps": steps // 10}
            objective = Objective({"rate": rate, "mse": 8.0, "chroma": 4.0, "lpips": {"weight": 0.5, "share": 0.5}})
            objective.bind(model)
            optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
            for number in range(steps):
                for group in optimizer.param_groups:
                    group["lr"] = 1e-3 * (0.1 + 0.9 * (1 - number / steps)) * min(1, (number + 1) / 50)
                chosen = [photos[i] for i in torch.randint(len(photos), (2,))]
                tops = [[int(torch.randint(side - crop + 1, ())) for side in photo.shape[1:]] for photo in chosen]
                crops = [p[:, y : y + crop, x : x + crop] for p, (y, x) in zip(chosen, tops, strict=True)]
                batch = {"image": torch.stack(crops)}
                with networks_in_bfloat16(form == "bfloat16"):
                    objective(batch, model(batch["image"]), None, number, None).total.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            model.eval().codec.prior.update_quantiles()
            found = [figures(model, photo[None]) for photo in held_out]
            means = {name: round(fmean(one[name] for one in found), 4) for name in found[0]}
            print(json.dumps({"form": form, "seed": seed, **means}), flush=True)


@torch.no_grad()
def figures(model: AEIC, x: Tensor) -> dict[str, float]:
    """Of one image, in float32."""
    output = model(x)
    bpp = float(output.bits_estimate) / x[0, 0].numel()
    error = float((output.x_hat - x).square().mean())
    lpips = float(LPIPS()(output.x_hat, x))
    return {"bpp": bpp, "psnr": 10 * math.log10(4 / error), "lpips": lpips, "loss": bpp + 8 * error + 0.5 * lpips}


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    one = commands.add_parser("step")
    one.add_argument("config", type=Path)
    one.add_argument("--batch", type=int, default=8)
    one.add_argument("--crop", type=int, default=128)
    one.add_argument("--turns", type=int, default=7)
    many = commands.add_parser("train")
    many.add_argument("--steps", type=int, default=2000)
    many.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    many.add_argument("--crop", type=int, default=64)
    args = parser.parse_args()
    if args.what == "step":
        step(args.config, args.batch, args.crop, args.turns)
    else:
        train(args.steps, args.seeds, args.crop)


if __name__ == "__main__":
    main()
