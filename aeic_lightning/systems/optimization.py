"""Manual optimization of two players: the settings, the optimizers, and one update of each."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from aeic_lightning.errors import UserError, did_you_mean
from aeic_lightning.losses.objective import Objective
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import LatentCodec
from aeic_lightning.models.decoder import OneStepDecoder
from aeic_lightning.systems.averaging import RAW, WeightAverage
from aeic_lightning.systems.guards import Guard, GuardedSystem, OnNonfinite

QUANTILE_INTERVAL = 50


@dataclass
class OptimizationConfig:
    """How the generator is trained. Steps are generator updates. The defaults are AEIC-ME stage 1's.

    The discriminator's learning rate is an argument of the adversarial term, warm-ups of weights are the objective's.

    Args:
        learning_rates: [step, rate] pairs: the rate from each step on. A list, because an experiment that includes
            another replaces its lists, whereas a mapping would keep the other's later steps.
        schedule: `constant` between the steps of `learning_rates`; `cosine` falls from the one rate there to
            `final_learning_rate` at `trainer.max_steps`.
        final_learning_rate: of `cosine`.
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
        shard_base: with several processes, spread the frozen base of the decoder over them (FSDP): each holds a share,
            and gathers a block at a time. Less memory, more traffic. Needs `decoder.pretrained`.
        accumulate: batches whose gradients are averaged for one step, for both players.
        on_nonfinite: what a loss or gradient of NaN or infinity does: "stop" the run, naming the term and the files, or
            "skip" the update and count it.
    """

    learning_rates: list[tuple[int, float]] = field(default_factory=lambda: [(0, 1e-4), (280_000, 5e-5)])
    schedule: Literal["constant", "cosine"] = "constant"
    final_learning_rate: float = 0.0
    warmup_steps: int = 0
    weight_decay: float = 0.01
    gradient_clip: float = 0.1
    ema: float = 0.0
    freeze: list[str] = field(default_factory=list)
    level: float | None = None
    cuda_graph: bool = False
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
        if not 0 <= self.ema < 1:
            raise UserError(
                f"optimization: ema is the share that an average keeps, 0 or more and below 1, not {self.ema}"
            )
        if self.accumulate < 1:
            raise UserError(f"optimization: accumulate must be at least 1, not {self.accumulate}")

    def learning_rate(self, step: int, max_steps: int = -1) -> float:
        """Rate of the update that follows `step` of `max_steps` updates; `cosine` needs to know how many there are."""
        _, rate = max((start, rate) for start, rate in self.learning_rates if start <= step)
        if self.schedule == "cosine":
            share = (step - self.warmup_steps) / max(max_steps - 1 - self.warmup_steps, 1)
            height = (1 + math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2
            rate = self.final_learning_rate + (rate - self.final_learning_rate) * height
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


class TwoPlayerSystem(GuardedSystem):
    """A system whose generator may have an adversary: `objective.adversary`'s discriminator.

    Only the generator's optimizer steps through Lightning, so `global_step`, `max_steps`, checkpoint intervals and the
    x axis of every curve count generator updates.
    """

    model: AEIC
    objective: Objective
    optimization: OptimizationConfig

    average: WeightAverage | None = None
    _quantiles: Tensor | None = None  # of training, during an evaluation
    _imported = False  # whether the weights are a release's
    _holds_frozen = False  # whether `optimization.freeze` holds already
    _accumulated = 0  # batches whose gradients the next update has so far

    def __init__(self) -> None:
        super().__init__()
        # What a discriminator with separate updates still has to see before the step: decoded images, losses on real.
        self._fakes: list[Tensor] = []
        self._real_losses: list[Tensor] = []

    def train(self, mode: bool = True) -> "TwoPlayerSystem":
        """What is frozen stays in evaluation mode."""
        super().train(mode)
        if mode and self._holds_frozen:
            hold_frozen(self.model, self.optimization.freeze)
        return self

    def make_guard(self) -> Guard:
        """The guard of both players."""
        adversary = self.objective.adversary
        chances = {"chance": adversary.chance, "least": adversary.least} if adversary else {}
        return Guard(self, self.optimization.on_nonfinite, **chances)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        config, adversary = self.optimization, self.objective.adversary
        if config.schedule == "cosine" and self.trainer.max_steps < 1:
            raise UserError("optimization: schedule: cosine must know where it ends; set trainer.max_steps")
        for path in config.freeze:
            freeze(self.model, path)
        self._holds_frozen = True
        trained = [p for _, p in self.generator_parameters()]
        if not trained:
            raise UserError("optimization: freeze leaves nothing to train")
        # Each update sets its own rate; this one is only what optimizers begin with.
        rate, decay = config.learning_rates[0][1], config.weight_decay
        generator = torch.optim.AdamW(trained, lr=rate, weight_decay=decay, fused=True)
        if adversary is None:
            return [generator]
        heads = [p for _, p in self.discriminator_parameters()]
        return [generator, torch.optim.AdamW(heads, lr=adversary.learning_rate)]

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.optimization.ema:
            self.start_average()

    def start_average(self) -> WeightAverage:
        """Begin to average the weights, unless a checkpoint has brought an average."""
        if self.average is None:
            self.average = WeightAverage(self.model, self.optimization.ema)
        return self.average

    def on_validation_start(self) -> None:
        """Evaluate the averages, if there are any, with quantiles of their own, as readers of a checkpoint do.

        Training gets its own back: were they solved anew where a run ends, one that is extended would go on otherwise
        than one that was longer from the start.
        """
        if self.average is not None:
            self.average.swap_in()
        elif self._solves_for_evaluation:
            self._quantiles = self.model.prior.quantiles.clone()
            self.solve_quantiles()

    def on_test_start(self) -> None:
        self.on_validation_start()

    def on_test_end(self) -> None:
        self.on_validation_end()

    def on_validation_end(self) -> None:
        if self.average is not None:
            self.average.swap_out()
        elif self._quantiles is not None:
            self.model.prior.quantiles.copy_(self._quantiles)
            self._quantiles = None

    @property
    def _solves_for_evaluation(self) -> bool:
        """Not before the first update, nor for an imported model, whose medians need not fit its density."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            return self.global_step > 0
        return not self._imported

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.average is not None:
            self.average.save(checkpoint)
        elif self._quantiles is not None:  # in the middle of a validation
            checkpoint["state_dict"]["model.codec.prior.quantiles"] = self._quantiles

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._imported = bool(checkpoint.get("imported"))
        if self.trainer.state.fn == TrainerFn.FITTING and RAW in checkpoint:
            if self.optimization.ema:
                self.start_average().load(checkpoint)
            else:
                raise UserError(
                    f"{self.trainer.ckpt_path} has averaged weights; go on with optimization.ema as it was, or start "
                    "a new run from it by init_from"
                )

    def teach_discriminator(self, x_hat: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Add one batch to the discriminator's gradient; returns its losses to log, none without a discriminator."""
        adversary = self.objective.adversary
        if adversary is None:
            return {}
        if adversary.updates == "joint":
            loss = adversary.discriminator_loss(x_hat, x)
            self.manual_backward(loss / self.optimization.accumulate)
            return {"discriminator": loss}
        # Decoded images are seen by the discriminator that the real ones have updated: in `step_players`.
        loss = adversary.real_loss(x)
        self.manual_backward(self.objective.adversary_weight * loss / self.optimization.accumulate)
        self._fakes.append(x_hat.detach())
        self._real_losses.append(loss.detach())
        return {"discriminator_real": loss}

    def update_when_due(self) -> None:
        """One update of each player after every `accumulate` batches."""
        self._accumulated += 1
        if self._accumulated == self.optimization.accumulate:
            self._accumulated = 0
            self.step_players()

    def step_players(self) -> None:
        """One update of each player from the gradients so far, unless the guard finds them not finite."""
        optimizers = self.optimizers()
        generator, *rest = optimizers if isinstance(optimizers, list) else [optimizers]
        players = {"generator": list(self.generator_parameters())}
        if rest:
            players["discriminator"] = list(self.discriminator_parameters())
        if not self.guard.allows(players):
            for player in (generator, *rest):
                player.zero_grad()
            self._fakes, self._real_losses = [], []
            self.objective.skipped()
            return
        for group in generator.param_groups:
            group["lr"] = self.optimization.learning_rate(self.global_step, self.trainer.max_steps)
        self._log_players({"": generator} | ({"discriminator_": rest[0]} if rest else {}))
        self._clip(generator)
        for discriminator in rest:
            self._step_discriminator(discriminator)
            if self._fakes:
                self._step_on_fakes(discriminator)
        generator.step()
        generator.zero_grad()
        self.objective.updated(self.global_step)
        if self.average is not None:
            self.average.update(self.global_step)
        if self.global_step % QUANTILE_INTERVAL == 0:
            self.solve_quantiles()

    def solve_quantiles(self) -> None:
        """The quantiles of the prior, unless it is frozen."""
        if any(p.requires_grad for p in self.model.prior.parameters()):
            self.model.prior.update_quantiles()

    def _log_players(self, players: dict[str, Any]) -> None:
        """Learning rate, and norm of the gradient before it is clipped, of each player by the prefix of its tags.

        Of a discriminator with two updates a step, those of the first.
        """
        values = {f"train/{prefix}learning_rate": player.param_groups[0]["lr"] for prefix, player in players.items()}
        norms = zip(players, ("generator", "discriminator"), strict=False)
        values |= {f"train/{prefix}gradient_norm": self.guard.norms[name] for prefix, name in norms}
        self.log_dict(values)

    def _clip(self, player: Any) -> None:
        if self.optimization.gradient_clip:
            # Not by Lightning, which refuses a fused optimizer under any mixed precision.
            for group in player.param_groups:
                nn.utils.clip_grad_norm_(group["params"], self.optimization.gradient_clip)

    def _step_discriminator(self, player: Any) -> None:
        self._clip(player)
        # Not through Lightning's wrapper, which would count it as a step.
        player.optimizer.step()
        player.zero_grad()

    def _step_on_fakes(self, player: Any) -> None:
        """The second of two separate updates, from the decoded images of all batches of this step."""
        adversary = self.objective.adversary
        assert adversary is not None
        losses = []
        for x_hat in self._fakes:
            losses.append(adversary.fake_loss(x_hat))
            self.manual_backward(self.objective.adversary_weight * losses[-1] / self.optimization.accumulate)
        fake, real = (torch.stack([loss.detach() for loss in seen]).mean() for seen in (losses, self._real_losses))
        self._fakes, self._real_losses = [], []
        terms = {"discriminator": real + fake, "discriminator_fake": fake}
        self.guard.see(terms, [])
        if self.guard.allows({"discriminator": list(self.discriminator_parameters())}, counts=False):
            self._step_discriminator(player)
        else:
            player.zero_grad()
        self.log_dict({f"train/{name}": value for name, value in terms.items()} | {"step": float(self.global_step)})

    def generator_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All that are trained but the discriminator's."""
        others = {id(p) for _, p in self.discriminator_parameters()}
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad and id(p) not in others)

    def discriminator_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The heads of the discriminator, if there is one."""
        adversary = self.objective.adversary
        named = adversary.discriminator.named_parameters() if adversary else ()
        return ((name, p) for name, p in named if p.requires_grad)

    @property
    def generator_step(self) -> int:
        """Updates of the generator so far."""
        return self.global_step

    @property
    def mid_step(self) -> bool:
        """Whether gradients of an unfinished step are being accumulated; a checkpoint would lose them."""
        return self._accumulated > 0
