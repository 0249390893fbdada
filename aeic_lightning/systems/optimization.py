"""Manual optimization of two players: the settings, the optimizer, and the second player's turns."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from aeic_lightning.errors import UserError, did_you_mean
from aeic_lightning.models.codec import LatentCodec
from aeic_lightning.models.decoder import OneStepDecoder
from aeic_lightning.systems.guards import OnNonfinite

QUANTILE_INTERVAL = 50


class Optimization:
    """What every system asks of its settings; a kind that does not have one of them keeps the value here."""

    gradient_clip: float = 0.0
    ema: float = 0.0
    freeze: Sequence[str] = ()
    level: float | None = None
    cuda_graph: bool = False
    bfloat16: bool | Literal["auto"] = False
    shard_base: bool = False
    accumulate: int = 1
    on_nonfinite: OnNonfinite = "stop"

    @property
    def quantile_interval(self) -> int:
        """Steps between two solutions for the prior's quantiles."""
        return QUANTILE_INTERVAL

    def check(self) -> None:
        """Raise UserError for settings that cannot work."""
        raise NotImplementedError

    def make_optimizer(self, trained: dict[str, nn.Parameter], system: LightningModule) -> torch.optim.Optimizer:
        """The generator's, of its parameters by name; the system's trainer says how long the run is."""
        raise NotImplementedError

    def set_rates(self, generator: Any, step: int, max_steps: int, epoch: int) -> None:
        """Set the learning rates of the update that follows `step` updates."""
        raise NotImplementedError


@dataclass
class OptimizationConfig(Optimization):
    """How the generator is trained. Steps are generator updates. The defaults are AEIC-ME stage 1's.

    The discriminator's learning rate is an argument of the adversarial term, warm-ups of weights are the objective's.

    Args:
        learning_rates: [step, rate] pairs: the rate from each step on. A list, because an experiment that includes
            another replaces its lists, whereas a mapping would keep the other's later steps.
        schedule: `constant` between the steps of `learning_rates`; `cosine` falls from the one rate there to
            `final_learning_rate` at `trainer.max_steps`.
        final_learning_rate: of `cosine`.
        decay_steps: of `constant`: the rate falls in a line to zero over the last so many of `trainer.max_steps`
            updates. A run goes on from a checkpoint of one without them, bit for bit, as in a sweep's `rungs`.
        warmup_steps: the learning rate rises linearly over this many steps.
        weight_decay: of AdamW.
        gradient_clip: largest norm of each player's gradient; 0 for none.
        ema: share of the moving average that a step keeps, such as 0.999; 0 for no average. It is one of the trained
            weights and of running statistics. Validation, test and every reader of the checkpoint then use the average
            (`WeightAverage`).
        freeze: modules of the model that stay as they are, by path: `decoder`, `codec.g_s`. Their weights have no
            gradients, and their layers are in evaluation mode: BatchNorm's statistics do not move, dropout is off.
        level: of a codec with `rate_levels`, the one level to train at: a model of one rate in the form of many, to
            compare with one that trains at all of them. Without it each crop of a batch has a level of its own.
            Validation is at the middle level in either case.
        cuda_graph: on a GPU, record the forward and the backward pass once and launch them as one from then on (CUDA
            graphs). The same arithmetic; what it saves is the time between thousands of small kernels, which is most
            of a step of the small sizes. The memory of a step stays taken.
        bfloat16: compute the networks in bfloat16 in a training step, but for the entropy model and, on a processor,
            depthwise convolutions; rounding, gains, losses, weights and evaluations are float32 as ever. `auto`: where
            a short timing says that it is quicker here. Other than `trainer.precision: bf16-mixed`, which leaves all of
            the codec and the networks of losses in float32, it also holds for those.
        shard_base: with several processes, spread the frozen base of the decoder over them (FSDP): each holds a share,
            and gathers a block at a time. Less memory, more traffic. Needs `decoder.pretrained`.
        accumulate: batches whose gradients are averaged for one step, for both players.
        on_nonfinite: what a loss or gradient of NaN or infinity does: "stop" the run, naming the term and the files, or
            "skip" the update and count it.
    """

    learning_rates: list[tuple[int, float]] = field(default_factory=lambda: [(0, 1e-4), (280_000, 5e-5)])
    schedule: Literal["constant", "cosine"] = "constant"
    final_learning_rate: float = 0.0
    decay_steps: int = 0
    warmup_steps: int = 0
    weight_decay: float = 0.01
    gradient_clip: float = 0.1
    ema: float = 0.0
    freeze: list[str] = field(default_factory=list)  # pyright: ignore[reportIncompatibleVariableOverride] (for YAML)
    level: float | None = None
    cuda_graph: bool = False
    bfloat16: bool | Literal["auto"] = False
    shard_base: bool = False
    accumulate: int = 1
    on_nonfinite: OnNonfinite = "stop"

    def check(self) -> None:
        """Raise UserError for settings that cannot work."""
        if 0 not in dict(self.learning_rates):
            raise UserError("optimization: learning_rates must say the rate from step 0 on, as in [[0, 1e-4]]")
        if self.schedule not in ("constant", "cosine"):
            raise UserError(f"optimization: schedule is constant or cosine, not {self.schedule!r}")
        if self.schedule == "cosine" and len(self.learning_rates) > 1:
            raise UserError("optimization: schedule: cosine falls from one rate; give learning_rates: [[0, RATE]]")
        if self.final_learning_rate and self.schedule != "cosine":
            raise UserError("optimization: final_learning_rate is of schedule: cosine; leave it out, or set that")
        if self.decay_steps < 0 or (self.decay_steps and self.schedule != "constant"):
            raise UserError(
                f"optimization: decay_steps is a number of updates of schedule: constant, not {self.decay_steps} of "
                f"schedule: {self.schedule}"
            )
        if not 0 <= self.ema < 1:
            raise UserError(
                f"optimization: ema is the share that an average keeps, 0 or more and below 1, not {self.ema}"
            )
        if self.accumulate < 1:
            raise UserError(f"optimization: accumulate must be at least 1, not {self.accumulate}")

    def make_optimizer(self, trained: dict[str, nn.Parameter], system: LightningModule) -> torch.optim.Optimizer:
        if (self.schedule == "cosine" or self.decay_steps) and system.trainer.max_steps < 1:
            what = "decay_steps" if self.decay_steps else "schedule: cosine"
            raise UserError(f"optimization: {what} must know where it ends; set trainer.max_steps")
        # Each update sets its own rate; this one is only what the optimizer begins with.
        rate, decay = self.learning_rates[0][1], self.weight_decay
        return torch.optim.AdamW(trained.values(), lr=rate, weight_decay=decay, fused=True)

    def set_rates(self, generator: Any, step: int, max_steps: int, epoch: int) -> None:
        for group in generator.param_groups:
            group["lr"] = self.learning_rate(step, max_steps)

    def learning_rate(self, step: int, max_steps: int = -1) -> float:
        """Rate of the update that follows `step` of `max_steps` updates; the end of them counts for `cosine` and
        `decay_steps`."""
        _, rate = max((start, rate) for start, rate in self.learning_rates if start <= step)
        if self.schedule == "cosine":
            share = (step - self.warmup_steps) / max(max_steps - 1 - self.warmup_steps, 1)
            height = (1 + math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2
            rate = self.final_learning_rate + (rate - self.final_learning_rate) * height
        if self.decay_steps:
            rate *= min(1.0, (max_steps - step) / (self.decay_steps + 1))
        return rate * min(1.0, (step + 1) / max(self.warmup_steps, 1))


def freeze(model: nn.Module, path: str) -> None:
    """Take the module at a path out of training: no gradients, and evaluation mode (`hold_frozen`).

    Raises UserError where there is none.
    """
    try:
        model.get_submodule(path).requires_grad_(False)
        hold_frozen(model, [path])
    except AttributeError as error:
        known = [name for name, _ in model.named_modules()]
        raise UserError(f"optimization: freeze: the model has no module {path!r}{did_you_mean(path, known)}") from error


def hold_frozen(model: nn.Module, paths: Iterable[str]) -> None:
    """Put the modules at these paths into evaluation mode: running statistics stay, dropout is off.

    The codec and the decoder as such follow the step: their mode says whether y is noisy and x_hat unclamped.
    """
    for module in (module for path in paths for module in model.get_submodule(path).modules()):
        module.training = module.training and isinstance(module, LatentCodec | OneStepDecoder)


def clip(parameters: list[nn.Parameter], norm: float) -> None:
    """Bound the norm of the gradient of some parameters together; 0 for no bound."""
    if norm and parameters:
        # Not by Lightning, which refuses a fused optimizer under any mixed precision.
        nn.utils.clip_grad_norm_(parameters, norm)


class SecondPlayer:
    """The discriminator's turns in a step: it sees each batch, and has one or two updates beside the generator's.

    Args:
        system: whose objective may have an adversary; nothing is done where it has none.
    """

    def __init__(self, system: Any) -> None:
        self.system = system
        # What separate updates still have to see before the step: decoded images, losses on real ones.
        self._fakes: list[Tensor] = []
        self._real_losses: list[Tensor] = []

    def see(self, x_hat: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Add one batch to the discriminator's gradient; returns its losses to log, none without a discriminator."""
        adversary, accumulate = self.system.objective.adversary, self.system.optimization.accumulate
        if adversary is None:
            return {}
        if adversary.updates == "joint":
            loss = adversary.discriminator_loss(x_hat, x)
            self.system.manual_backward(loss / accumulate)
            return {"discriminator": loss}
        # Decoded images are seen by the discriminator that the real ones have updated: in `step`.
        loss = adversary.real_loss(x)
        self.system.manual_backward(self.system.objective.adversary_weight * loss / accumulate)
        self._fakes.append(x_hat.detach())
        self._real_losses.append(loss.detach())
        return {"discriminator_real": loss}

    def skipped(self) -> None:
        """Forget what was seen for an update that was not taken."""
        self._fakes, self._real_losses = [], []

    def step(self, player: Any) -> None:
        """The update from what was seen; of two separate ones both."""
        self._update(player)
        if self._fakes:
            self._update_on_fakes(player)

    def _update(self, player: Any) -> None:
        for group in player.param_groups:
            clip(group["params"], self.system.optimization.gradient_clip)
        # Not through Lightning's wrapper, which would count it as a step.
        player.optimizer.step()
        player.zero_grad()

    def _update_on_fakes(self, player: Any) -> None:
        """The second of two separate updates, from the decoded images of all batches of this step."""
        system, adversary = self.system, self.system.objective.adversary
        losses = []
        for x_hat in self._fakes:
            losses.append(adversary.fake_loss(x_hat))
            system.manual_backward(system.objective.adversary_weight * losses[-1] / system.optimization.accumulate)
        fake, real = (torch.stack([loss.detach() for loss in seen]).mean() for seen in (losses, self._real_losses))
        self.skipped()
        terms = {"discriminator": real + fake, "discriminator_fake": fake}
        system.guard.see(terms, [])
        if system.guard.allows({"discriminator": list(system.discriminator_parameters())}, counts=False):
            self._update(player)
        else:
            player.zero_grad()
        system.log_at_step("train", terms)


def adopt_steps(checkpoint: dict[str, Any]) -> None:
    """Count on from the steps of a checkpoint whose optimizer Lightning stepped: an earlier version's classifier."""
    loops = checkpoint.get("loops", {}).get("fit_loop", {})
    by_hand = loops.get("epoch_loop.manual_optimization.optim_step_progress")
    automatic = loops.get("epoch_loop.automatic_optimization.optim_progress")
    if by_hand and automatic and not by_hand["total"]["completed"]:
        by_hand.update(automatic["optimizer"]["step"])
