"""`complexity`: what a config costs at the sender and at the receiver."""

import argparse

from aeic_lightning import UserError
from aeic_lightning.config import load_config, parse_overrides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The experiment file; overrides work as in `fit`."""
    parser.usage = f"{parser.prog} --config FILE [--section.name=value ...]"
    parser.add_argument("--config", action="append", required=True, help="experiment file; later ones win")


def run(args: argparse.Namespace, extra: list[str]) -> None:
    """Print parameters and MACs per pixel by module."""
    config = load_config(args.config, parse_overrides(extra))
    try:
        sizes = config["model"]["init_args"]
    except (KeyError, TypeError):
        raise UserError(f"{args.config[-1]} has no model section; give an experiment file") from None

    import torch

    from aeic_lightning.codec import CodecConfig
    from aeic_lightning.decoder import DecoderConfig
    from aeic_lightning.evaluation.complexity import codec_costs
    from aeic_lightning.model import AEIC
    from aeic_lightning.weights.checkpoint import from_dict

    codec = from_dict(CodecConfig, sizes.get("codec") or {})
    decoder = from_dict(DecoderConfig, sizes.get("decoder") or {})
    with torch.device("meta"):
        model = AEIC(codec, decoder)
    costs = codec_costs(model)
    print(f"{'module':<10} {'parameters':>14} {'MACs/pixel':>12}")
    for name in ("g_a", "h_a", "h_s", "context", "prior", "encode", "g_s", "denoiser", "vae"):
        cost = costs[name]
        print(f"{name:<10} {cost.parameters:>14,} {cost.macs_per_pixel:>12,.1f}")
    print("encode = g_a + h_a + h_s + context + prior: all that the sender runs. Convolutions and matrix products.")
