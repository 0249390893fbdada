"""Averages of the weights over the steps of a run (Polyak and Juditsky 1992), as an exponential moving average.

At a constant learning rate much of what a network lacks is noise of the last steps. The average has less of it: it
shows early what a decay of the learning rate to zero would give in the end.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from aeic_lightning.models.base import CompressionModel

RAW = "raw_weights"
"""Entry of a checkpoint with the weights that training goes on from; `state_dict` has the averages."""


@torch.no_grad()
def average_in(averages: Iterable[Tensor], weights: Iterable[Tensor], decay: float, step: int) -> None:
    """Move each average towards the weights after `step` steps, of which it keeps `decay`.

    Early averages keep less, (1 + step) / (10 + step), so that they soon leave the random weights behind.
    """
    get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))(list(averages), list(weights), step)


def running_statistics(model: CompressionModel) -> list[str]:
    """Buffers that an average covers beside the weights: those of numbers that a checkpoint has, such as BatchNorm's.

    The prior's quantiles are solved for from its weights, not averaged.
    """
    kept = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()} - {id(model.prior.quantiles)}
    return [name for name, buffer in model.named_buffers() if buffer.is_floating_point() and id(buffer) in kept]


class WeightAverage:
    """Averages of a model's trained parameters and of its running statistics, on its device.

    Args:
        model: whose parameters are averaged.
        decay: share of the average that a step keeps, below 1. Early averages keep less: (1 + t) / (10 + t) after t
            steps.
    """

    def __init__(self, model: CompressionModel, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.statistics = running_statistics(model)
        self.averages = {name: tensor.detach().clone() for name, tensor in self._averaged()}
        self._raw: dict[str, Tensor] | None = None  # the model's own state while it holds the averages

    def _averaged(self) -> list[tuple[str, Tensor]]:
        trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        return [*trained, *((name, self.model.get_buffer(name)) for name in self.statistics)]

    def _state_names(self) -> dict[str, str]:
        """Tensor -> its name in a checkpoint, where an adapter's is left out."""
        kept = {id(tensor): name for name, tensor in self.model.state_dict(keep_vars=True).items()}
        return {name: kept[id(tensor)] for name, tensor in self._averaged()}

    def update(self, step: int) -> None:
        """Take in the weights after `step` steps."""
        own = dict(self._averaged())
        average_in((self.averages[name] for name in own), own.values(), self.decay, step)

    @torch.no_grad()
    def swap_in(self) -> None:
        """Put the averages into the model, for an evaluation; the prior's quantiles are solved for them."""
        if self._raw is None:
            self._raw = self._own_state()
            for name, tensor in self._averaged():
                tensor.copy_(self.averages[name])
            self.model.prior.update_quantiles()

    @torch.no_grad()
    def swap_out(self) -> None:
        """Put the model's own weights back, bit for bit."""
        if self._raw is not None:
            for name, tensor in self._averaged():
                tensor.copy_(self._raw[name])
            self.model.prior.quantiles.copy_(self._raw["prior.quantiles"])
            self._raw = None

    def _own_state(self) -> dict[str, Tensor]:
        own = {name: tensor.detach().clone() for name, tensor in self._averaged()}
        return own | {"prior.quantiles": self.model.prior.quantiles.clone()}

    def save(self, checkpoint: dict, prefix: str = "model.") -> None:
        """Make the averages the checkpoint's `state_dict`, which readers use, and keep the raw weights beside."""
        checkpoint[RAW] = self._raw or self._own_state()
        # Of a resumed run there are averages from before modules were frozen.
        checkpoint["state_dict"] |= {prefix + kept: self.averages[name] for name, kept in self._state_names().items()}

    def load(self, checkpoint: dict, prefix: str = "model.") -> None:
        """Take the averages from a checkpoint that training goes on from, whose `state_dict` gets the raw weights."""
        raw, state = dict(checkpoint[RAW]), checkpoint["state_dict"]
        quantiles = raw.pop("prior.quantiles")
        for name, kept in self._state_names().items():
            self.averages[name].copy_(state[prefix + kept])
            state[prefix + kept] = raw.get(name, state[prefix + kept])  # of before statistics were averaged
        own = next(name for name, buffer in self.model.named_buffers() if buffer is self.model.prior.quantiles)
        state[prefix + own] = quantiles
