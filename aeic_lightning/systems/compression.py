"""The training step of every system, and the parts that it is put together from."""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, cast

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from aeic_lightning.checkpoints.checkpoint import RATE_UPDATES, check_base, check_fits
from aeic_lightning.errors import UserError
from aeic_lightning.losses.objective import Objective, ObjectiveOutput
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.base import CompressionModel
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import DecoderConfig
from aeic_lightning.models.layers import networks_in_bfloat16
from aeic_lightning.systems import optimization as settings
from aeic_lightning.systems.averaging import RAW, WeightAverage
from aeic_lightning.systems.compiled import CompiledBlocks
from aeic_lightning.systems.evaluated import EvaluatedSystem, check_write_streams
from aeic_lightning.systems.graphed import GraphedPass, check_graph
from aeic_lightning.systems.optimization import (
    Guard,
    Optimization,
    SecondPlayer,
    adopt_steps,
    check_classes,
    classes_of,
    freeze,
    hold_frozen,
    refuse_loss_scaling,
    seed_batch,
)
from aeic_lightning.systems.sharded import ShardedBase, check_shards
from aeic_lightning.systems.start import Start
from aeic_lightning.systems.teachers import Teacher
from aeic_lightning.torch_settings import bfloat16_is_quicker


class CompressionSystem(EvaluatedSystem):
    """Trains one model on an objective of rate, distortion and perception, with an optional adversary and teacher.

    Only the generator's optimizer steps through Lightning, so `global_step`, `max_steps`, checkpoint intervals and the
    x axis of every curve count generator updates.

    Args:
        model: what is trained.
        objective: the terms of the loss and their weights, by name (`losses/objective.py`).
        optimization: learning rates, clipping, accumulation.
        start: the checkpoints that a new run starts from. What was taken over is printed, and is in `run.json`.
        teacher: what the terms compare the model with: frozen, trained beside it, or its moving average.
        write_streams: whether validation and test write each image's file, whose bytes are `bpp`; entropy coding
            is done on the CPU. Without it there is `bpp_estimate` alone. A number N: of the first N images;
            `bpp_share` and `bpp_estimate_share` are then their rates, `bpp_estimate` that of all images.
        labels: what tells this run from others in a study, such as {arm: enc_dec, seed: 0}: columns of TensorBoard's
            HParams view, and what the report groups by.
    """

    mixup: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """What is done to a training batch first."""
    classes: int = 0
    """How many classes the data must have; 0 where labels are not read."""
    learns = True
    """Whether `model` is trained; if not, it is in evaluation mode without gradients."""
    has_density = True
    """Whether the prior's quantiles follow its density in training."""
    further_config: dict[str, Any] = {}  # noqa: RUF012 (replaced, never changed)
    """Entries of a checkpoint's `model_config` beside the model's own."""

    def __init__(
        self,
        model: CompressionModel,
        objective: dict[str, Any],
        optimization: Optimization,
        start: Start | None = None,
        teacher: Teacher | None = None,
        write_streams: bool | int = True,
        labels: dict[str, str | int | float] | None = None,
    ) -> None:
        super().__init__()
        optimization.check()
        self.model = model
        self.objective = Objective(objective)
        self.optimization = optimization
        self.start = start or Start()
        self.started_from: list[dict[str, Any]] = []  # what warm starts took over; `run.json` has it
        self.earlier_rate_updates: int | None = 0  # before this process; None where the checkpoint does not say
        self.write_streams = check_write_streams(write_streams)
        self.automatic_optimization = False  # there may be two players
        self.guard = Guard.of(self)
        self.second_player = SecondPlayer(self)
        self.average: WeightAverage | None = None
        self.sharded_base: ShardedBase | None = None
        self.imported = False  # whether the weights are a release's, as they came
        self.mid_step = False  # whether gradients of an unfinished step are accumulated; a checkpoint would lose them
        self._accumulated = 0  # batches whose gradients the next update has so far
        self._holds_frozen = False  # whether `optimization.freeze` holds already
        self._quantiles: Tensor | None = None  # of training, during an evaluation
        self.teaching = teacher
        if teacher is not None:
            teacher.join(self)

    # ------------------------------------------------------------------ the step

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        if self.mixup is not None:
            batch = self.mixup(batch)
        if self.optimization.cuda_graph:
            loss, x_hat = self.graphed_pass(batch), None
        else:
            loss, x_hat = self.both_passes(batch, step=self.global_step)
        terms = {"loss": loss.total} | loss.terms
        if x_hat is not None:
            terms |= self.second_player.see(x_hat, batch["image"])
        self.guard.see(terms, batch["name"])
        self._accumulated = (self._accumulated + 1) % self.optimization.accumulate
        self.mid_step = self._accumulated > 0
        if not self.mid_step:
            self.step_players()
        self.log_at_step("train", terms)
        return loss.total.detach()

    def both_passes(
        self, batch: dict[str, Any], level: Tensor | None = None, step: int | None = None, weights: Tensor | None = None
    ) -> tuple[ObjectiveOutput, Tensor | None]:
        """Forward and backward pass of one batch: its losses, and its pictures if a term reads more than latents;
        gradients are added to the parameters'.

        `level` (B,) is `optimization.level` or drawn where there are rate levels; `step` and `weights` are
        `Objective.forward`'s.
        """
        x = batch["image"]
        with networks_in_bfloat16(self.in_bfloat16), self.compiled.active():
            chosen = self.optimization.level if level is None else level
            output = cast(AEIC, self.model).code(x, chosen) if self.reads_latents_alone else self(x, chosen)
            taught = self.teacher_taps(x, getattr(output, "level", None))
            loss = self.objective(batch, output, taught, step, weights)
            self.manual_backward(loss.total / self.optimization.accumulate)
        return loss, getattr(output, "x_hat", None)

    def step_players(self) -> None:
        """One update of each player from the gradients so far, unless the guard finds them not finite."""
        optimizers = self.optimizers()
        generator, *rest = optimizers if isinstance(optimizers, list) else [optimizers]
        players = {"generator": list(self.generator_parameters())}
        if rest:
            players["discriminator"] = list(self.discriminator_parameters())
        if self.guard.late:
            self.guard.queue(players["generator"], generator.optimizer)
        elif not self.guard.allows(players):
            for player in (generator, *rest):
                player.zero_grad()
            self.second_player.skipped()
            self.objective.skipped()
            return
        self.optimization.set_rates(generator, self.global_step, self.trainer.max_steps, self.current_epoch)
        self._log_players({"": generator} | ({"discriminator_": rest[0]} if rest else {}))
        self._clip_generator()
        for discriminator in rest:
            self.second_player.step(discriminator)
        generator.step()
        generator.zero_grad()
        self.objective.updated(self.global_step)
        if self.average is not None:
            self.average.update(self.global_step)
        if self.global_step % self.optimization.quantile_interval == 0:
            self.solve_quantiles()
        if self.teaching is not None:
            self.teaching.updated(self.global_step)

    @cached_property
    def in_bfloat16(self) -> bool:
        """Whether training steps compute networks in bfloat16 here: `optimization.bfloat16`."""
        if self.optimization.bfloat16 != "auto":
            return self.optimization.bfloat16
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        return torch.cuda.is_bf16_supported() if on_gpu else bfloat16_is_quicker()

    @cached_property
    def reads_latents_alone(self) -> bool:
        """Whether training steps leave the decoder out, since no term reads what it computes."""
        if not isinstance(self.model, AEIC):
            return False
        codec = {tap.name for tap in [*self.model.codec.taps, *self.model.encoder_taps]}
        return self.objective.reads_only(codec)

    @cached_property
    def compiled(self) -> CompiledBlocks:
        """What training steps compute by compiled code: `optimization.compile`."""
        return CompiledBlocks.of(self)

    @cached_property
    def graphed_pass(self) -> GraphedPass:
        """`both_passes` for a GPU, as one launch."""
        return GraphedPass.of(self)

    def forward(self, x: Tensor, level: Tensor | float | None = None) -> Any:
        """Images (B, 3, H, W) in [-1, 1] -> what the objective reads: an `AEICOutput`, or what has its names."""
        return self.model(x, level, self.tap_paths)

    def teacher_taps(self, x: Tensor, level: Tensor | None = None) -> dict[str, Tensor] | None:
        """What the objective compares the model's taps with; None without a teacher."""
        return None if self.teaching is None else self.teaching.taps(x, level)

    @property
    def tap_paths(self) -> list[str]:
        """Taps of the objective that are paths of modules."""
        declared = {tap.name for tap in self.model.taps}
        return [name for name in self.objective.student_taps if name not in declared]

    def solve_quantiles(self) -> None:
        """The quantiles of the prior, unless it is frozen."""
        if self.has_density and any(p.requires_grad for p in self.model.prior.parameters()):
            self.model.prior.update_quantiles()

    def _clip_generator(self) -> None:
        """Bound the norm of the gradient of the model, and of a teacher that learns, each by itself."""
        theirs = [] if self.teaching is None else self.teaching.trained
        others = {id(p) for p in theirs}
        own = [p for _, p in self.generator_parameters() if id(p) not in others]
        for parameters in (own, theirs):
            settings.clip(parameters, self.optimization.gradient_clip)

    # ------------------------------------------------------------------ the players

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        config, adversary = self.optimization, self.objective.adversary
        for path in config.freeze:
            freeze(self.model, path)
        self._holds_frozen = True
        theirs = [] if self.teaching is None else self.teaching.trained
        others = {id(p) for p in theirs}
        trained = {name: p for name, p in self.generator_parameters() if id(p) not in others}
        if not trained:
            raise UserError("optimization: freeze leaves nothing to train")
        generator = config.make_optimizer(trained, self)
        if theirs:
            generator.add_param_group({"params": theirs})
        if adversary is None:
            return [generator]
        heads = [p for _, p in self.discriminator_parameters()]
        return [generator, torch.optim.AdamW(heads, lr=adversary.learning_rate)]

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

    def train(self, mode: bool = True) -> "CompressionSystem":
        """What is frozen stays in evaluation mode."""
        super().train(mode)
        if not self.learns:
            self.model.eval()
        elif mode and self._holds_frozen:
            hold_frozen(self.model, self.optimization.freeze)
        return self

    # ------------------------------------------------------------------ where a run starts from

    def setup(self, stage: str) -> None:
        if not isinstance(self.trainer.strategy, DDPStrategy | SingleDeviceStrategy):
            raise UserError(
                f"trainer.strategy is {type(self.trainer.strategy).__name__}: what is trained is whole on each "
                "device; leave it at auto, or take ddp (optimization.shard_base splits the frozen base)"
            )
        if isinstance(self.trainer.strategy, DDPStrategy):
            # Each player's backward pass leaves out the other's parameters; plain `ddp` would wait for them.
            self.trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
        if self.classes:
            check_classes(self.trainer, self.classes)
        if stage == "fit":
            refuse_loss_scaling(self)
            self.model.draw_levels(1, self.optimization.level)  # refuses one that the model does not have
            if self.optimization.bfloat16 and self.trainer.precision != "32-true":
                raise UserError(
                    f"trainer.precision: {self.trainer.precision} and optimization.bfloat16 both say what is computed "
                    "in bfloat16; leave one of them out"
                )
            if self.optimization.cuda_graph:
                check_graph(self)
            if self.optimization.shard_base:
                check_shards(self)
        if not self.objective.bound:
            self.objective.bind(self.model)
        self.model.load_base()
        if not self.learns:
            self.model.requires_grad_(False)  # the base as well
        # A resumed run starts from its own checkpoint, and must not need the files that it once started from.
        if stage == "fit" and not self.trainer.ckpt_path:
            self.load_start()
        if stage == "fit" and self.optimization.shard_base and self.trainer.world_size > 1:
            self.sharded_base = ShardedBase.of(self)

    def load_start(self) -> None:
        """Load what a new run starts from, if anything."""
        self.start.load(self)
        if self.teaching is not None:
            self.teaching.started()

    @property
    def trainer_is_first(self) -> bool:
        """Whether this is the process that prints and records."""
        return self._trainer is None or self._trainer.is_global_zero

    def on_fit_start(self) -> None:
        if self.optimization.ema:
            self.start_average()

    def on_train_start(self) -> None:
        self.guard.late = self.guard.may_be_late()

    def start_average(self) -> WeightAverage:
        """Begin to average the weights, unless a checkpoint has brought an average."""
        if self.average is None:
            self.average = WeightAverage(self.model, self.optimization.ema)
        return self.average

    def on_train_batch_start(self, batch: dict, batch_idx: int) -> None:
        if not hasattr(self, "_run_seed"):
            self._run_seed = torch.initial_seed()  # as `seed_everything` left it, in a resumed run too
        seed_batch(self._run_seed, self.trainer.fit_loop.epoch_loop.total_batch_idx, self.global_rank)

    def on_train_end(self) -> None:
        self.guard.conclude()

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

    @property
    def _solves_for_evaluation(self) -> bool:
        """Not before the first update, nor for an imported model, whose medians need not fit its density."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            return self.global_step > 0
        return not self.imported

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        if self.sharded_base:
            if self.write_streams:
                self.open_bitstream()  # before: a look at the model's `state_dict` would let go of the base
            self.sharded_base.gather()

    def on_validation_end(self) -> None:
        if self.average is not None:
            self.average.swap_out()
        elif self._quantiles is not None:
            self.model.prior.quantiles.copy_(self._quantiles)
            self._quantiles = None
        if self.sharded_base:
            self.sharded_base.release()

    def on_test_start(self) -> None:
        self.on_validation_start()

    def on_test_end(self) -> None:
        self.on_validation_end()

    # ------------------------------------------------------------------ records

    def log_at_step(self, prefix: str, terms: dict[str, Tensor]) -> None:
        """Log scalars under `prefix/` over generator steps."""
        values = {f"{prefix}/{name}": value.detach() for name, value in terms.items()}
        self._log(values | {"step": float(self.global_step)})

    def _log(self, values: dict[str, Tensor | float]) -> None:
        """Log scalars. Numbers are made on the device: Lightning would copy each there, and wait for it."""
        scalars = {k: v if isinstance(v, Tensor) else torch.full((), v, device=self.device) for k, v in values.items()}
        self.log_dict(scalars)

    def _log_players(self, players: dict[str, Any]) -> None:
        """Learning rate, and norm of the gradient before it is clipped, of each player by the prefix of its tags.

        Of a discriminator with two updates a step, those of the first.
        """
        values = {f"train/{prefix}learning_rate": player.param_groups[0]["lr"] for prefix, player in players.items()}
        norms = zip(players, ("generator", "discriminator"), strict=False)
        values |= {f"train/{prefix}gradient_norm": self.guard.norms[name] for prefix, name in norms}
        self._log(values)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.guard.settle()  # no checkpoint after a step that had to be left out
        checkpoint["skipped_updates"] = self.guard.skipped
        if self.earlier_rate_updates is not None:
            own = self.guard.updates if self.objective.weight("rate") else 0
            checkpoint[RATE_UPDATES] = self.earlier_rate_updates + own
        if self.average is not None:
            self.average.save(checkpoint)
        elif self._quantiles is not None:  # in the middle of a validation
            checkpoint["state_dict"]["model.codec.prior.quantiles"] = self._quantiles
        names = {"class_names": classes_of(self.trainer)} if self.classes else {}
        checkpoint["model_config"] = self.model.config | self.further_config | names
        if self.imported and not self.learns:
            checkpoint["imported"] = True

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        path, fits = str(self.trainer.ckpt_path), self.trainer.state.fn == TrainerFn.FITTING
        self.guard.skipped = checkpoint.get("skipped_updates", 0)
        self.earlier_rate_updates = checkpoint.get(RATE_UPDATES)
        check_fits(self, checkpoint["state_dict"], path, "--ckpt_path")
        self.imported = bool(checkpoint.get("imported"))
        if fits:
            adopt_steps(checkpoint)
        if fits and RAW in checkpoint:
            if not self.optimization.ema:
                raise UserError(
                    f"{path} has averaged weights; go on with optimization.ema as it was, or start "
                    "a new run from it by init_from"
                )
            self.start_average().load(checkpoint)
        if "model_config" in checkpoint:
            check_base(self.model, checkpoint, path, "ckpt_path")


def aeic(codec: CodecConfig, decoder: DecoderConfig) -> AEIC:
    """The model of these sizes, channels last: the faster layout on CPUs and on tensor cores."""
    return AEIC(codec, decoder).to(memory_format=torch.channels_last)
