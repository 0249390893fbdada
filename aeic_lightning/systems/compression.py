"""The training step that teachers and students share."""

import math
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn

from aeic_lightning.checkpoints.checkpoint import check_base, load_strictly, read_checkpoint, with_prefix
from aeic_lightning.errors import UserError
from aeic_lightning.losses.adversarial import ProjectedDiscriminator, discriminator_loss
from aeic_lightning.losses.rate_distortion import LossConfig, RateDistortionPerceptionLoss
from aeic_lightning.models.aeic import AEIC, AEICOutput
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import DecoderConfig
from aeic_lightning.systems.evaluated import EvaluatedSystem
from aeic_lightning.systems.guards import Guard, GuardedSystem, OnNonfinite

QUANTILE_INTERVAL = 50


@dataclass
class OptimizationConfig:
    """How the two players are trained. Steps are generator updates. The defaults are AEIC-ME stage 1's.

    Args:
        learning_rates: [step, rate] pairs: the generator's rate from each step on. A list, because an experiment that
            includes another replaces its lists, whereas a mapping would keep the other's later steps.
        warmup_steps: the learning rate rises linearly over so many steps.
        rate_warmup_steps: lambda rises linearly from 0 over so many steps.
        weight_decay: of AdamW.
        gradient_clip: largest norm of each player's gradient; 0 for none.
        accumulate: batches whose gradients are averaged for one step, for both players.
        discriminator: backbone of the projected discriminator, used when the adversarial weight is above 0.
        discriminator_learning_rate: constant.
        real_label: the discriminator's target for real images; below 1 it smooths the label.
        on_nonfinite: what a loss or gradient of NaN or infinity does: "stop" the run, naming the term and the files, or
            "skip" the update and count it.
    """

    learning_rates: list[tuple[int, float]] = field(default_factory=lambda: [(0, 1e-4), (280_000, 5e-5)])
    warmup_steps: int = 0
    rate_warmup_steps: int = 0
    weight_decay: float = 0.01
    gradient_clip: float = 0.1
    accumulate: int = 1
    discriminator: str = "lite0"
    discriminator_learning_rate: float = 2e-5
    real_label: float = 1.0
    on_nonfinite: OnNonfinite = "stop"

    def check(self) -> None:
        """Raise UserError for settings that cannot work."""
        if 0 not in dict(self.learning_rates):
            raise UserError("optimization: learning_rates must say the rate from step 0 on, as in [[0, 1e-4]]")
        if self.accumulate < 1:
            raise UserError(f"optimization: accumulate must be at least 1, not {self.accumulate}")
        if not 0.5 < self.real_label <= 1:
            raise UserError(f"optimization: real_label must be above 0.5 and at most 1, not {self.real_label}")

    def learning_rate(self, step: int) -> float:
        """Rate of the update that follows `step` updates."""
        _, rate = max((start, rate) for start, rate in self.learning_rates if start <= step)
        return rate * min(1.0, (step + 1) / max(self.warmup_steps, 1))


class CompressionSystem(GuardedSystem, EvaluatedSystem):
    """Trains one AEIC model on rate, distortion and perception, with an optional adversary.

    Optimization is manual, since there may be two players. Only the generator's optimizer steps through Lightning, so
    `global_step`, `max_steps`, checkpoint intervals and the x axis of every curve count generator updates.

    Args:
        codec: sizes of the latent codec.
        decoder: sizes of the one-step decoder.
        loss: weights of the terms.
        optimization: learning rates, clipping, accumulation.
        init_from: checkpoint of the stage before, of the same sizes; the whole model starts from it.
        write_streams: whether validation and test write each image's file, whose bytes are `bpp`; entropy coding
            is done on the CPU. Without it there is `bpp_estimate` alone.
        labels: what tells this run from others in a study, such as {arm: enc_dec, seed: 0}: columns of TensorBoard's
            HParams view, and what the report groups by.
    """

    def __init__(
        self,
        codec: CodecConfig,
        decoder: DecoderConfig,
        loss: LossConfig,
        optimization: OptimizationConfig,
        init_from: str | None = None,
        write_streams: bool = True,
        labels: dict[str, str | int | float] | None = None,
    ) -> None:
        super().__init__()
        optimization.check()
        self.automatic_optimization = False
        self.optimization = optimization
        # Channels last is the faster layout on CPUs and on tensor cores.
        self.model = AEIC(codec, decoder).to(memory_format=torch.channels_last)
        self.loss = RateDistortionPerceptionLoss(loss)
        self.discriminator = ProjectedDiscriminator(optimization.discriminator) if loss.adversarial else None
        self.init_from = init_from
        self.write_streams = write_streams
        self.labels = labels or {}
        self.guard = self._guard()
        self._accumulated = 0

    def _guard(self) -> Guard:
        if self.discriminator is None:
            return Guard(self, self.optimization.on_nonfinite)
        heads, r = len(self.discriminator.heads), self.optimization.real_label
        least = 0.0 if r == 1 else -heads * (r * math.log(r) + (1 - r) * math.log(1 - r))
        return Guard(self, self.optimization.on_nonfinite, chance=2 * heads * math.log(2), least=least)

    def setup(self, stage: str) -> None:
        if isinstance(self.trainer.strategy, DDPStrategy):
            # Each player's backward pass leaves out the other's parameters; plain `ddp` would wait for them.
            self.trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
        if stage == "fit" and self.trainer.precision.startswith("16"):
            raise UserError(
                f"trainer.precision: {self.trainer.precision} would need loss scaling; take bf16-mixed, or 32-true"
            )
        self.model.decoder.load_base()
        self.model.to(memory_format=torch.channels_last)  # the base as well
        # A resumed run starts from its own checkpoint, and must not need the files that it once started from.
        if stage == "fit" and not self.trainer.ckpt_path:
            self.load_start()

    def load_start(self) -> None:
        """Load what a new run starts from, if anything."""
        if self.init_from:
            self.load_stage(self.init_from)

    def load_stage(self, path: str | Path) -> None:
        """Start from the model of an earlier stage."""
        checkpoint = read_checkpoint(path, "init_from")
        check_base(self.model, checkpoint, path, "init_from")
        load_strictly(self.model, with_prefix(checkpoint, "model."), path, "init_from")

    # ------------------------------------------------------------------ the step

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> STEP_OUTPUT:
        x = batch["image"]
        output = self.model(x)
        fake_logits = None
        if self.discriminator is not None:
            # The generator's gradient passes through the discriminator to x_hat, and must leave nothing behind in it.
            with frozen_parameters(self.discriminator):
                fake_logits = self.discriminator(output.x_hat)
        loss = self.loss(output.x_hat, x, output.bits_estimate, fake_logits, self.rate_scale)
        extra, extra_terms = self.extra_loss(x, output)
        total = loss.total + extra
        self.manual_backward(total / self.optimization.accumulate)

        terms = {"loss": total, **loss.terms, **extra_terms}
        if self.discriminator is not None:
            fake_logits, real_logits = self.discriminator(output.x_hat.detach()), self.discriminator(x)
            adversary = discriminator_loss(fake_logits, real_logits, self.optimization.real_label)
            self.manual_backward(adversary / self.optimization.accumulate)
            terms["discriminator"] = adversary

        self.finish_batch(batch, terms)
        return total.detach()

    def finish_batch(self, batch: dict[str, Any], terms: dict[str, Tensor]) -> None:
        """What follows the backward passes: the guard, an update when it is due, the log."""
        self.guard.see(terms, batch["name"])
        self._accumulated += 1
        if self._accumulated == self.optimization.accumulate:
            self._accumulated = 0
            self.step_players()
        self.log_at_step("train", terms)

    def extra_loss(self, x: Tensor, output: AEICOutput) -> tuple[Tensor | float, dict[str, Tensor]]:
        """What a system adds to the loss, and its terms for the log. Nothing, for a system without a teacher."""
        return 0.0, {}

    def step_players(self) -> None:
        """One update of each player from the gradients so far, unless the guard finds them not finite."""
        optimizers = self.optimizers()
        generator, *rest = optimizers if isinstance(optimizers, list) else [optimizers]
        players = {"generator": self._trained(), **({"discriminator": self._heads()} if rest else {})}
        if not self.guard.allows(players):
            for player in (generator, *rest):
                player.zero_grad()
            return
        for group in generator.param_groups:
            group["lr"] = self.optimization.learning_rate(self.global_step)
        for player in (generator, *rest):
            if self.optimization.gradient_clip:
                # Not by Lightning, which refuses a fused optimizer under any mixed precision.
                trained = [p for group in player.param_groups for p in group["params"]]
                nn.utils.clip_grad_norm_(trained, self.optimization.gradient_clip)
        for adversary in rest:
            # Not through Lightning's wrapper, which would count it as a step.
            adversary.optimizer.step()
            adversary.zero_grad()
        generator.step()
        generator.zero_grad()
        if self.global_step % QUANTILE_INTERVAL == 0 or self.global_step == self.trainer.max_steps:
            self.model.codec.prior.update_quantiles()

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        """The generator's parameters: all that are trained but the discriminator's."""
        named = self.named_parameters()
        return [(name, p) for name, p in named if p.requires_grad and not name.startswith("discriminator.")]

    def _heads(self) -> list[tuple[str, nn.Parameter]]:
        """The discriminator's parameters."""
        return [(name, p) for name, p in self.discriminator.named_parameters() if p.requires_grad]

    @property
    def rate_scale(self) -> float:
        """Factor of lambda during its warm-up."""
        return min(1.0, self.global_step / max(self.optimization.rate_warmup_steps, 1))

    @property
    def generator_step(self) -> int:
        """Updates of the generator so far."""
        return self.global_step

    @property
    def mid_step(self) -> bool:
        """Whether gradients of an unfinished step are being accumulated; a checkpoint would lose them."""
        return self._accumulated > 0

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        config = self.optimization
        trained = [p for _, p in self._trained()]
        generator = torch.optim.AdamW(trained, lr=config.learning_rate(0), weight_decay=config.weight_decay, fused=True)
        if self.discriminator is None:
            return [generator]
        heads = [p for _, p in self._heads()]
        return [generator, torch.optim.AdamW(heads, lr=config.discriminator_learning_rate)]

    # ------------------------------------------------------------------ evaluation

    def evaluate_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Names, x and x_hat (B, 3, H, W) in [-1, 1], and the estimated bits (B,) of each image."""
        output = self.model(batch["image"])
        return {
            "name": batch["name"],
            "x": batch["image"],
            "x_hat": output.x_hat,
            "bits_estimate": output.bits_estimate,
        }

    # ------------------------------------------------------------------ records

    def log_at_step(self, prefix: str, terms: dict[str, Tensor]) -> None:
        """Log scalars under `prefix/` over generator steps."""
        values = {f"{prefix}/{name}": value.detach() for name, value in terms.items()}
        self.log_dict(values | {"step": float(self.global_step)})

    def hparam_columns(self) -> dict[str, Any]:
        """Columns of TensorBoard's HParams view."""
        codec, loss = self.model.codec.config, self.loss.config
        return {
            "role": type(self).__name__.removesuffix("System").lower(),
            **codec.labels,
            "lambda": loss.rate,
            "adversarial": loss.adversarial,
            "beta1": 0.0,
            "beta2": 0.0,
        } | self.labels

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["model_config"] = self.model.config

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if "model_config" in checkpoint:
            check_base(self.model, checkpoint, self.trainer.ckpt_path, "ckpt_path")


@contextmanager
def frozen_parameters(module: nn.Module):
    """Gradients flow through `module` to its input, but not into its parameters."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)
