"""A second set of decoder weights beside a model's own: one stream, a faithful picture and a realistic one.

The last stage of training with an adversary moves the decoder alone (`optimization.freeze: [codec]`), so that both
decoders read the same streams. Between the two their weights are interpolated (Wang et al. 2019, "Deep Network
Interpolation for Continuous Imagery Effect Transition").
"""

from pathlib import Path

import torch

from aeic_lightning.checkpoints.checkpoint import load_aeic
from aeic_lightning.errors import UserError
from aeic_lightning.models.aeic import AEIC


def add_realistic(model: AEIC, path: str | Path) -> None:
    """Give `model` the decoder of a checkpoint whose codec is its own, bit for bit.

    Raises UserError for another codec or decoder, for adapters over a pretrained base, and where there is one already.
    """
    role = "realistic"
    if model.realistic is not None:
        raise UserError(f"{role}: the model has realistic weights already; give the faithful checkpoint by itself")
    if model.decoder.config.pretrained:
        raise UserError(
            f"{role}: the decoder is an adapter over a pretrained base; only whole decoders are interpolated"
        )
    other = load_aeic(path, role)
    ours, theirs = (one.decoder.state_dict() for one in (model, other))
    if {name: t.shape for name, t in ours.items()} != {name: t.shape for name, t in theirs.items()}:
        raise UserError(f"{role}: the decoder of {path} has other sizes; train it from the faithful checkpoint")
    ours, theirs = (one.codec.state_dict() for one in (model, other))
    # Quantiles are solved for, not trained.
    moved = [n for n in ours if "quantiles" not in n and not (n in theirs and torch.equal(ours[n], theirs[n]))]
    if ours.keys() != theirs.keys() or moved:
        raise UserError(
            f"{role}: codec.{moved[0] if moved else min(ours.keys() ^ theirs.keys())} of {path} is not the model's, so "
            "they do not read the same streams; train it with init_from and optimization.freeze: [codec]"
        )
    model.realistic = other.decoder
