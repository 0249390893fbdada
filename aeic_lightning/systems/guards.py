"""What every training run is watched for, and the random draws that let it be repeated.

The step calls them at three places: `seed_batch` before a batch, `see` after its losses, `allows` before an update.
"""

import math
import random
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from aeic_lightning.errors import RunError, UserError

OnNonfinite = Literal["stop", "skip"]

WINDOW = 50
"""Batches in a row that must look collapsed before a warning is printed."""
NO_RATE = 1e-4
"""Bits per pixel; 26 bits for 512 x 512 pixels."""
WON = 0.1
"""Share of the loss at chance below which a discriminator has won outright."""
MOST_SKIPS = 20
"""Updates skipped in a row after which skipping is no answer."""


def seed_batch(seed: int, batch: int, rank: int) -> None:
    """Seed torch, numpy and Python, so that what a batch draws follows from (seed, batch, rank) alone.

    Noise, augmentations and mixup of a resumed run are then those of the uninterrupted one, without any generator's
    state in a checkpoint (which would hold rank 0's only), and no two batches or processes draw the same.
    """
    words = np.random.SeedSequence(seed, spawn_key=(3, batch, rank)).generate_state(3, np.uint64)
    torch.manual_seed(int(words[0]))
    np.random.seed(int(words[1]) % 2**32)
    random.seed(int(words[2]))


def refuse_loss_scaling(system: LightningModule) -> None:
    """Raise UserError for a precision of 16 bits with few exponents: `16-mixed`, `16-true`.

    Its loss is scaled up until gradients overflow now and then, which the scaler skips as routine; the guard, which
    sees them before, would stop the run. bfloat16 has the range of float32 and needs no scaling.
    """
    precision = system.trainer.precision
    if str(precision).startswith("16"):
        raise UserError(f"trainer.precision: {precision} would need loss scaling; take bf16-mixed, or 32-true")


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm of all gradients together, (), 0 without any."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())


class Guard:
    """Stops a run at a loss or a gradient that is not finite, and says when a rate or an adversary has collapsed.

    `see` takes the terms of each batch; `allows` decides on the update that they lead to.

    Args:
        system: the system that is trained.
        on_nonfinite: "stop" raises RunError, naming the terms and the files of the batch; "skip" leaves the update out
            and counts it in `skipped`, but stops after 20 in a row. In a run of several processes all do the same.
        chance: the discriminator's loss where it tells nothing apart; 0 without one.
        least: the smallest loss that it can have (above 0 with smoothed labels).
    """

    def __init__(
        self, system: LightningModule, on_nonfinite: OnNonfinite = "stop", chance: float = 0.0, least: float = 0.0
    ) -> None:
        self.system = system
        self.on_nonfinite = on_nonfinite
        self.chance, self.least = chance, least
        self.skipped = 0
        self.updates = 0  # that were allowed, since the process began
        self.norms: dict[str, Tensor] = {}  # of each player's gradient, before it is clipped, in its last update
        self._in_a_row = 0
        self._files: list[str] = []  # of the batches that the next update learns from
        self._bad: dict[str, float] = {}  # their terms that are not finite
        self._rates: deque[float] = deque(maxlen=WINDOW)
        self._adversary: deque[float] = deque(maxlen=WINDOW)
        self._said: set[str] = set()

    @classmethod
    def of(cls, system: Any) -> "Guard":
        """That of a system with an `objective` and its `optimization`."""
        adversary = system.objective.adversary
        chances = {"chance": adversary.chance, "least": adversary.least} if adversary else {}
        return cls(system, system.optimization.on_nonfinite, **chances)

    def conclude(self) -> None:
        """Say at the end of a run how many updates were skipped."""
        if self.skipped and self.system.trainer.is_global_zero:
            print(f"{self.skipped} updates were skipped: not finite", file=sys.stderr, flush=True)

    def see(self, terms: dict[str, Tensor], files: Sequence[str]) -> None:
        """The scalars of one batch, and the names of its images."""
        # One copy to the CPU for all: each would make the GPU wait.
        values = torch.stack([value.detach().float().to(self.system.device) for value in terms.values()]).tolist()
        named = dict(zip(terms, values, strict=True))
        self._files += files
        self._bad |= {name: value for name, value in named.items() if not math.isfinite(value)}
        self._watch_collapse(named)

    def allows(self, players: Mapping[str, Sequence[tuple[str, nn.Parameter]]], counts: bool = True) -> bool:
        """Whether to take the update. `players` are the named parameters of each optimizer; an update that does not
        count is one of several that make a step.

        Raises RunError where a loss or a gradient is not finite and the run must stop.
        """
        files, bad = self._files, self._bad
        self._files, self._bad = [], {}
        norms = torch.stack([gradient_norm(p for _, p in named) for named in players.values()])
        self.norms |= zip(players, norms, strict=True)
        broken = bool(bad) or not norms.isfinite().all().item()
        trainer = self.system.trainer
        if trainer.world_size > 1:  # one process alone must neither stop nor skip: the others would wait for ever
            broken = trainer.strategy.reduce_boolean_decision(broken, all=False)
        if not broken:
            if counts:
                self._in_a_row = 0
                self.updates += 1
            return True
        reason = f"{self._describe(bad, players)} on the batch of {', '.join(files)}"
        if self.on_nonfinite == "stop":
            raise RunError(
                f"{self._where}: {reason}. Nothing was updated, and the last checkpoint is from before: go on from it "
                "with lower learning rates, or without these images, or with optimization.on_nonfinite=skip"
            )
        self.skipped += 1
        self._in_a_row += 1
        self._say(f"skipped an update ({self.skipped} so far): {reason}")
        if self._in_a_row == MOST_SKIPS:
            raise RunError(
                f"{self._where}: {MOST_SKIPS} updates in a row had a loss or a gradient that is not finite, the last "
                f"one: {reason}. The model has diverged: go on from an earlier checkpoint with lower learning rates"
            )
        return False

    def _describe(self, bad: dict[str, float], players: Mapping[str, Sequence[tuple[str, nn.Parameter]]]) -> str:
        terms = {name: value for name, value in bad.items() if name != "loss"} or bad
        if terms:
            return "the loss is not finite: " + ", ".join(f"{name} is {value}" for name, value in terms.items())
        for player, named in players.items():
            names = [name for name, p in named if p.grad is not None and not p.grad.isfinite().all()]
            if names:
                others = f" and of {len(names) - 1} more" if len(names) > 1 else ""
                return f"the {player}'s gradient of {names[0]}{others} is not finite (the losses are)"
        return "a loss or a gradient is not finite in another process"

    def _watch_collapse(self, values: dict[str, float]) -> None:
        if "bpp_estimate" in values:
            self._rates.append(values["bpp_estimate"])
            if len(self._rates) == WINDOW and max(self._rates) < NO_RATE:
                self._say_once(
                    f"the rate has collapsed: bpp_estimate stayed below {NO_RATE:g} for {WINDOW} batches, so the "
                    "latents carry next to nothing. Lower the weight of the rate (objective.rate), or let "
                    "it rise more slowly (objective.rate.warmup_steps)"
                )
        if self.chance and "discriminator" in values:
            self._adversary.append(values["discriminator"])
            limit = self.least + WON * (self.chance - self.least)
            if len(self._adversary) == WINDOW and sum(self._adversary) / WINDOW < limit:
                self._say_once(
                    f"the discriminator has won outright: its loss fell below {limit:.3g}, the mean over {WINDOW} "
                    f"batches ({self.chance:.3g} is chance), so the generator learns next to nothing from it. Lower "
                    "objective.adversarial.learning_rate, or smooth its labels (objective.adversarial.real_label: 0.9)"
                )

    @property
    def _where(self) -> str:
        return f"step {self.system.global_step}"

    def _say_once(self, message: str) -> None:
        kind = message.split(":")[0]
        if kind not in self._said:
            self._said.add(kind)
            self._say(message)

    def _say(self, message: str) -> None:
        if self.system.trainer.is_global_zero:
            print(f"warning: {self._where}: {message}", file=sys.stderr, flush=True)


def check_classes(trainer: Trainer, classes: int) -> None:
    """Raise UserError when the data have another number of classes than the head."""
    found = len(classes_of(trainer))
    if not found:
        raise UserError(
            "the data have no classes; use a labelled data module, such as datamodules.labelled.SampleDigits"
        )
    if found != classes:
        raise UserError(f"the data have {found} classes, the transformer {classes}; set its `classes`")


def classes_of(trainer: Trainer) -> list[str]:
    """Names of the classes of the data, which a checkpoint carries; none where the data have no classes."""
    return list(getattr(getattr(trainer, "datamodule", None), "class_names", None) or [])
