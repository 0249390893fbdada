"""The training step that teachers, students and distillation share."""

from functools import cached_property
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from aeic_lightning.checkpoints.checkpoint import RATE_UPDATES, check_base, read_checkpoint, solve_prior, with_prefix
from aeic_lightning.checkpoints.start import Counts, StartFrom, announce, take_over
from aeic_lightning.errors import UserError
from aeic_lightning.losses.objective import Objective, ObjectiveOutput
from aeic_lightning.losses.rate import Rate
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import DecoderConfig, OneStepDecoder
from aeic_lightning.systems.evaluated import EvaluatedSystem, check_write_streams
from aeic_lightning.systems.graphed import GraphedPass
from aeic_lightning.systems.guards import refuse_loss_scaling
from aeic_lightning.systems.optimization import OptimizationConfig, TwoPlayerSystem
from aeic_lightning.systems.sharded import ShardedBase

ENTROPY_MODEL = ("codec.h_a", "codec.prior", "codec.h_s", "codec.context")
"""Parts whose training a model's count of rate updates tells of."""


class CompressionSystem(TwoPlayerSystem, EvaluatedSystem):
    """Trains one AEIC model on an objective of rate, distortion and perception, with an optional adversary.

    Args:
        codec: sizes of the latent codec.
        decoder: sizes of the one-step decoder.
        objective: the terms of the loss and their weights, by name (`losses/objective.py`).
        optimization: learning rates, clipping, accumulation.
        init_from: checkpoint of the stage before, of the same sizes; the whole model starts from it. With
            `{path: ..., only: [codec.h_a, decoder]}` those modules alone do (`StartFrom`). What was taken over is
            printed, and is in `run.json`.
        write_streams: whether validation and test write each image's file, whose bytes are `bpp`; entropy coding
            is done on the CPU. Without it there is `bpp_estimate` alone. A number N: of the first N images;
            `bpp_share` and `bpp_estimate_share` are then their rates, `bpp_estimate` that of all images.
        labels: what tells this run from others in a study, such as {arm: enc_dec, seed: 0}: columns of TensorBoard's
            HParams view, and what the report groups by.
    """

    def __init__(
        self,
        codec: CodecConfig,
        decoder: DecoderConfig,
        objective: dict[str, Any],
        optimization: OptimizationConfig,
        init_from: str | StartFrom | None = None,
        write_streams: bool | int = True,
        labels: dict[str, str | int | float] | None = None,
    ) -> None:
        super().__init__()
        optimization.check()
        # Channels last is the faster layout on CPUs and on tensor cores.
        self.model = AEIC(codec, decoder).to(memory_format=torch.channels_last)
        self.objective = Objective(objective)
        self.optimization = optimization
        self.init_from = None if init_from is None else StartFrom.of(init_from, "init_from")
        self.started_from = []
        self.write_streams = check_write_streams(write_streams)
        self.automatic_optimization = False  # there may be two players
        self.guard = self.make_guard()

    # ------------------------------------------------------------------ the step

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        if self.optimization.cuda_graph:
            loss, x_hat = self.graphed_pass(batch), None
        else:
            loss, x_hat = self.both_passes(batch, step=self.global_step)
        terms = {"loss": loss.total} | loss.terms
        if x_hat is not None:
            terms |= self.teach_discriminator(x_hat, batch["image"])
        self.guard.see(terms, batch["name"])
        self.update_when_due()
        self.log_at_step("train", terms)
        return loss.total.detach()

    def both_passes(
        self, batch: dict[str, Any], level: Tensor | None = None, step: int | None = None, weights: Tensor | None = None
    ) -> tuple[ObjectiveOutput, Tensor]:
        """Forward and backward pass of one batch: its losses and pictures; gradients are added to the parameters'.

        `level` (B,) is `optimization.level` or drawn where there are rate levels; `step` and `weights` are
        `Objective.forward`'s.
        """
        x = batch["image"]
        output = self(x, self.optimization.level if level is None else level)
        loss = self.objective(batch, output, self.teacher_taps(x, output.level), step, weights)
        self.manual_backward(loss.total / self.optimization.accumulate)
        return loss, output.x_hat

    @cached_property
    def graphed_pass(self) -> GraphedPass:
        """`both_passes` for a GPU, as one launch."""

        def inputs(batch: dict[str, Any]) -> dict[str, Tensor]:
            weights = torch.tensor(self.objective.weights_at(self.global_step)).to(self.device)
            level = self.model.codec.levels(len(batch["image"]), self.optimization.level)
            return {"weights": weights} | ({} if level is None else {"level": level})

        return GraphedPass(self, lambda batch, **given: self.both_passes(batch, **given)[0], inputs)

    def check_graph(self) -> None:
        """Raise UserError where a step cannot be replayed: it needs the CPU in its middle."""
        reasons = {
            "a GPU (trainer.accelerator: gpu)": self.trainer.strategy.root_device.type != "cuda",
            "optimization.accumulate: 1": self.optimization.accumulate > 1,
            "an objective without an adversary": self.objective.adversary is not None,
            "an objective without rate.target": any(term.target for term in self.objective.of_kind(Rate)),
            "one process": self.trainer.world_size > 1,
            "a step of images alone (no labels, teacher_cache or online distillation)": not self.replayable,
        }
        for needed, lacking in reasons.items():
            if lacking:
                raise UserError(f"optimization.cuda_graph needs {needed}; leave it out")

    @property
    def replayable(self) -> bool:
        """Whether all that a step computes stays on the GPU."""
        return True

    def forward(self, x: Tensor, level: Tensor | float | None = None) -> Any:
        """Images (B, 3, H, W) in [-1, 1] -> what the objective reads: an `AEICOutput`, or what has its names."""
        return self.model(x, level, self.tap_paths)

    def teacher_taps(self, x: Tensor, level: Tensor | None = None) -> dict[str, Tensor] | None:
        """What the objective compares the model's taps with; None without a teacher."""
        return None

    @property
    def tap_paths(self) -> list[str]:
        """Taps of the objective that are paths of modules."""
        declared = {tap.name for tap in self.model.taps}
        return [name for name in self.objective.student_taps if name not in declared]

    # ------------------------------------------------------------------ where a run starts from

    sharded_base: ShardedBase | None = None
    started_from: list[dict[str, Any]]
    """What warm starts took over (`checkpoints/start.py`); `run.json` has it."""

    def setup(self, stage: str) -> None:
        if not isinstance(self.trainer.strategy, DDPStrategy | SingleDeviceStrategy):
            raise UserError(
                f"trainer.strategy is {type(self.trainer.strategy).__name__}: what is trained is whole on each "
                "device; leave it at auto, or take ddp (optimization.shard_base splits the frozen base)"
            )
        if isinstance(self.trainer.strategy, DDPStrategy):
            # Each player's backward pass leaves out the other's parameters; plain `ddp` would wait for them.
            self.trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
        if stage == "fit":
            refuse_loss_scaling(self)
            self.model.codec.levels(1, self.optimization.level)  # refuses one that the codec does not have
            if self.optimization.cuda_graph:
                self.check_graph()
            if self.optimization.shard_base:
                self.check_shards()
        if not self.objective.bound:
            self.objective.bind(self.model)
        self.model.decoder.load_base()
        self.model.to(memory_format=torch.channels_last)  # the base as well
        # A resumed run starts from its own checkpoint, and must not need the files that it once started from.
        if stage == "fit" and not self.trainer.ckpt_path:
            self.load_start()
        if stage == "fit" and self.optimization.shard_base and self.trainer.world_size > 1:
            self.sharded_base = ShardedBase(self, self.decoders)

    @property
    def decoders(self) -> list[OneStepDecoder]:
        """All that a training step runs."""
        return [self.model.decoder]

    def check_shards(self) -> None:
        """Raise UserError where the base cannot be spread over processes."""
        if not self.model.decoder.config.pretrained:
            raise UserError(
                "optimization.shard_base spreads the frozen base of decoder.pretrained over the processes; this "
                "decoder is trained whole, leave shard_base out"
            )

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        if self.sharded_base:
            if self.write_streams:
                self.open_bitstream()  # before: a look at the model's `state_dict` would let go of the base
            self.sharded_base.gather()

    def on_validation_end(self) -> None:
        super().on_validation_end()
        if self.sharded_base:
            self.sharded_base.release()

    def load_start(self) -> None:
        """Load what a new run starts from, if anything."""
        if self.init_from:
            self.load_stage(self.init_from)

    def load_stage(self, start: StartFrom) -> None:
        """Start from the model of an earlier stage, or from parts of it."""
        checkpoint = read_checkpoint(start.path, "init_from")
        if not start.only or any(path.startswith("decoder") for path in start.only):
            check_base(self.model, checkpoint, start.path, "init_from")
        counts = take_over(self.model, with_prefix(checkpoint, "model."), start, "init_from")
        if counts.get("codec.prior", [0])[0]:
            solve_prior(self.model.prior, checkpoint)  # a checkpoint has those of training
        self.note_start("init_from", start.path, counts)
        if all(part in counts and counts[part][0] == counts[part][1] for part in ENTROPY_MODEL):
            self.earlier_rate_updates = checkpoint.get(RATE_UPDATES)

    def note_start(self, role: str, path: str, counts: Counts) -> None:
        """Print what a warm start took over, and keep it for the run's record."""
        if self.trainer_is_first:
            self.started_from.append(announce(role, path, counts))

    @property
    def trainer_is_first(self) -> bool:
        """Whether this is the process that prints and records."""
        return self._trainer is None or self._trainer.is_global_zero

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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["model_config"] = self.model.config

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if "model_config" in checkpoint:
            check_base(self.model, checkpoint, str(self.trainer.ckpt_path), "ckpt_path")
