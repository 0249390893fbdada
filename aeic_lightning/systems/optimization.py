"""Manual optimization of two players: the settings, the optimizer, and the second player's turns."""

import math
import random
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from aeic_lightning.errors import RunError, UserError, did_you_mean
from aeic_lightning.models.codec import LatentCodec
from aeic_lightning.models.decoder import OneStepDecoder

QUANTILE_INTERVAL = 50
OnNonfinite = Literal["stop", "skip"]

WINDOW = 50
"""Batches in a row that must look collapsed before a warning is printed."""
NO_RATE = 1e-4
"""Bits per pixel; 26 bits for 512 x 512 pixels."""
WON = 0.1
"""Share of the loss at chance below which a discriminator has won outright."""
MOST_SKIPS = 20
"""Updates skipped in a row after which skipping is no answer."""


class Optimization:
    """What every system asks of its settings; a kind that does not have one of them keeps the value here."""

    gradient_clip: float = 0.0
    ema: float = 0.0
    freeze: Sequence[str] = ()
    level: float | None = None
    compile: bool | str = False
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
        decay_steps: of `constant`: the rate falls in a line to zero over this many updates, the last of
            `trainer.max_steps`. A run goes on from a checkpoint of one without them, bit for bit, as in a sweep's
            `rungs`.
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
        compile: build the blocks of the networks by `torch.compile` for training steps: fewer and longer kernels, equal
            up to the order of sums. The first steps take minutes, and need a C compiler. Evaluations and checkpoints
            are those without. `true`, or the name of another backend than `inductor`.
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
    compile: bool | str = False
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
        if isinstance(self.compile, str) and self.compile not in (known := torch.compiler.list_backends(())):
            raise UserError(f"optimization: compile is true, false or one of {', '.join(known)}, not {self.compile!r}")
        if self.compile and self.shard_base:
            raise UserError("optimization: compile does not know the shares of shard_base; leave one of them out")
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


# ---------------------------------------------------------------------- what every run is watched for


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


class Queued(NamedTuple):
    """What a guard has still to read of an update: the values of the terms of each batch, then gradients' norms."""

    where: str
    files: list[str]
    terms: list[list[str]]
    gradients: list[str]
    values: Tensor
    copied: Any  # the event after which they are there; None on a processor


class Guard:
    """Stops a run at a loss or a gradient that is not finite, and says when a rate or an adversary has collapsed.

    `see` takes the terms of each batch; `allows` decides on the update that they lead to.

    Args:
        system: the system that is trained.
        on_nonfinite: "stop" raises RunError, naming the terms and the files of the batch; "skip" leaves the update out
            and counts it in `skipped`, but stops after 20 in a row. In a run of several processes all do the same.
        chance: the discriminator's loss where it tells nothing apart; 0 without one.
        least: the smallest loss that it can have (above 0 with smoothed labels).

    A GPU would wait for each decision. Where it `may_be_late`, `queue` takes the place of `allows`.
    """

    late = False
    """Whether what `see` is given is read one step late."""

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
        self._unread: list[tuple[list[str], Tensor]] = []  # their terms, where they are read late
        self._queued: Queued | None = None
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
        """Say at the end of a run how many updates were skipped. Raises RunError where the last one had to be."""
        self.settle()
        if self.skipped and self.system.trainer.is_global_zero:
            print(f"{self.skipped} updates were skipped: not finite", file=sys.stderr, flush=True)

    def see(self, terms: dict[str, Tensor], files: Sequence[str]) -> None:
        """The scalars of one batch, and the names of its images."""
        # One copy to the CPU for all: each would make the GPU wait.
        values = torch.stack([value.detach().float().to(self.system.device) for value in terms.values()])
        self._files += files
        if self.late:
            self._unread.append((list(terms), values))
        else:
            self._take(list(terms), values.tolist())

    def _take(self, names: Iterable[str], values: Iterable[float]) -> None:
        named = dict(zip(names, values, strict=True))
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
        not_finite = {
            player: [name for name, p in named if p.grad is not None and not p.grad.isfinite().all()]
            for player, named in players.items()
        }
        reason = self._describe(bad, not_finite, files)
        if self.on_nonfinite == "stop":
            raise self._stopped(self._where, reason)
        self.skipped += 1
        self._in_a_row += 1
        self._say(f"skipped an update ({self.skipped} so far): {reason}")
        if self._in_a_row == MOST_SKIPS:
            raise RunError(
                f"{self._where}: {MOST_SKIPS} updates in a row had a loss or a gradient that is not finite, the last "
                f"one: {reason}. The model has diverged: go on from an earlier checkpoint with lower learning rates"
            )
        return False

    def may_be_late(self) -> bool:
        """Whether updates may be queued before their numbers are read: one optimizer that can leave one out by itself,
        on a GPU, in one process, of a run that stops where a number is not finite."""
        trainer, optimizers = self.system.trainer, self.system.trainer.optimizers
        alone = trainer.world_size == 1 and len(optimizers) == 1
        fused = all(getattr(optimizer, "_step_supports_amp_scaling", False) for optimizer in optimizers)
        return trainer.strategy.root_device.type == "cuda" and alone and fused and self.on_nonfinite == "stop"

    def queue(self, generator: Iterable[tuple[str, nn.Parameter]], optimizer: Any) -> None:
        """`allows` for an update whose numbers are read later: a fused optimizer leaves it out by itself, by what it is
        given here. Nothing is waited for but the numbers of the update before, which are read now (`settle`).
        """
        self.settle()
        gradients = {name: p.grad for name, p in generator if p.grad is not None}
        norms = torch.stack(torch._foreach_norm(list(gradients.values())))
        self.norms["generator"] = torch.linalg.vector_norm(norms)
        values = torch.cat([*(values for _, values in self._unread), norms, self.norms["generator"][None]])
        copy, copied = values.to("cpu", non_blocking=True), torch.cuda.Event() if values.is_cuda else None
        if copied:
            copied.record()
        terms = [names for names, _ in self._unread]
        self._queued = Queued(self._where, self._files, terms, list(gradients), copy, copied)
        self._files, self._unread = [], []
        self.updates += 1
        optimizer.found_inf = (~values.isfinite().all()).float()  # as GradScaler gives it

    def settle(self) -> None:
        """Read the numbers of the last update that was queued. Raises RunError if it had to be left out."""
        queued, self._queued = self._queued, None
        if queued is None:
            return
        if queued.copied:
            queued.copied.synchronize()
        values = iter(queued.values.tolist())
        for names in queued.terms:
            self._take(names, list(islice(values, len(names))))
        norms, bad, self._bad = list(values), self._bad, {}
        if bad or not all(map(math.isfinite, norms)):
            found = [name for name, norm in zip(queued.gradients, norms, strict=False) if not math.isfinite(norm)]
            raise self._stopped(queued.where, self._describe(bad, {"generator": found or ["all"]}, queued.files))

    @staticmethod
    def _stopped(where: str, reason: str) -> RunError:
        return RunError(
            f"{where}: {reason}. Nothing was updated, and the last checkpoint is from before: go on from it with lower "
            "learning rates, or without these images, or with optimization.on_nonfinite=skip"
        )

    @staticmethod
    def _describe(bad: dict[str, float], not_finite: dict[str, list[str]], files: Sequence[str]) -> str:
        """What is not finite, terms or else the gradients of the first player that has some, and on which files."""
        terms = {name: value for name, value in bad.items() if name != "loss"} or bad
        found = "a loss or a gradient is not finite in another process"
        if terms:
            found = "the loss is not finite: " + ", ".join(f"{name} is {value}" for name, value in terms.items())
        elif player := next((player for player, names in not_finite.items() if names), None):
            first, *others = not_finite[player]
            more = f" and of {len(others)} more" if others else ""
            found = f"the {player}'s gradient of {first}{more} is not finite (the losses are)"
        return f"{found} on the batch of {', '.join(files)}"

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
