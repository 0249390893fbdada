"""`complexity`: what a config costs at the sender and at the receiver."""

import argparse
from dataclasses import asdict

from aeic_lightning.config import load_config, parse_overrides
from aeic_lightning.output import add_json_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The experiment file; overrides work as in `fit`."""
    parser.usage = f"{parser.prog} --config FILE [--section.name=value ...]"
    parser.add_argument("--config", action="append", required=True, help="experiment file; later ones win")
    add_json_argument(parser)


def run(args: argparse.Namespace, extra: list[str]) -> None:
    """Print parameters and MACs per pixel by module."""
    config = load_config(args.config, parse_overrides(extra), classes="parts")

    from aeic_lightning.models.aeic import AEIC
    from aeic_lightning.study.complexity import codec_costs, experiment_configs, paper_encode, sizes_alone

    codec, decoder = experiment_configs(config, args.config[-1])
    with sizes_alone():
        model = AEIC(codec, decoder)
    costs = codec_costs(model)
    print(f"{'module':<10} {'parameters':>14} {'MACs/pixel':>14}")
    for name in ("g_a", "h_a", "h_s", "context", "prior", "encode", "g_s", "denoiser", "vae"):
        cost = costs[name]
        print(f"{name:<10} {cost.parameters:>14,} {cost.macs_per_pixel:>14,.1f}")
    encode, paper = costs["encode"], paper_encode(codec)
    if paper:
        name, parameters, macs = paper
        print(f"{'the paper':<10} {parameters:>14,.0f} {macs:>14,.1f}   encode of {name}")
        ratios = encode.parameters / parameters - 1, encode.macs_per_pixel / macs - 1
        print(f"{'difference':<10} {ratios[0]:>+14.2%} {ratios[1]:>+14.2%}")
    of_paper = paper and dict(zip(("name", "parameters", "macs_per_pixel"), paper, strict=True))
    args.give({"modules": {name: asdict(cost) for name, cost in costs.items()}, "paper": of_paper})
    print("encode = g_a + h_a + h_s + context + prior: all that the sender runs. MACs of convolutions and matrix")
    print("products, for a square image of 1024 pixels; attention in the denoiser and the VAE grows with the image.")
