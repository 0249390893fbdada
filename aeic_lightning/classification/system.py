"""Training of compress-and-classify: its own two steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import STEP_OUTPUT, OptimizerLRScheduler
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from aeic_lightning.checkpoints.checkpoint import RATE_UPDATES, load_strictly, read_checkpoint, with_prefix
from aeic_lightning.classification.losses import LogitsDistillation
from aeic_lightning.classification.model import ClassificationConfig, ClassificationModel
from aeic_lightning.classification.targets import Mixup, check_classes, trained_classes
from aeic_lightning.classification.teacher import CheckpointTeacher, LogitsTeacher, TimmTeacher
from aeic_lightning.errors import UserError
from aeic_lightning.losses.objective import Objective
from aeic_lightning.systems.evaluated import EvaluatedSystem, check_write_streams
from aeic_lightning.systems.guards import Guard, GuardedSystem, OnNonfinite, refuse_loss_scaling

# Steps between two solutions for the prior's quantiles. Where z rounds to its median, the median is what h_s reads: if
# solved seldom under a prior that learns fast, it jumps, and every mean of y with it.
QUANTILE_INTERVAL = 10


@dataclass
class ClassificationOptimization:
    """How the model is trained.

    Gradient clipping (1.0 in the paper's size) and accumulation are the trainer's (`gradient_clip_val`,
    `accumulate_grad_batches`).

    Args:
        optimizer: `adamw` (step 1) or `adam` (step 2).
        learning_rate: at its highest. It falls to `final_learning_rate` along a cosine.
        learning_rate_batch: images a step, over all processes, that `learning_rate` is for; with others it is scaled in
            proportion (`final_learning_rate` and `warmup_learning_rate` are not). null: as it is, whatever the batch.
        final_learning_rate: at the end of the cosine.
        schedule: `steps`: a new rate at every step. `epochs`, as the release: timm's cosine, over the epochs of the run
            from the first one on, warm-up included, with one rate for a whole epoch. The release takes each step of it
            an epoch late, so the first rate lasts two epochs, and so it does here.
        warmup_steps: of `steps`: the learning rate rises linearly over this many steps.
        warmup_epochs: of `epochs`: the learning rate rises linearly over this many epochs.
        warmup_learning_rate: of `epochs`: where it begins to rise.
        weight_decay: of matrices and kernels; biases, norms and embeddings are not decayed.
        prior_learning_rate: highest rate of the density of z, which follows the same course; null for that of the rest.
        on_nonfinite: what a loss or gradient of NaN or infinity does: "stop" the run, naming the term and the files, or
            "skip" the update and count it (it still counts as a step).
    """

    optimizer: Literal["adamw", "adam"] = "adamw"
    learning_rate: float = 5e-4
    learning_rate_batch: int | None = None
    final_learning_rate: float = 1e-5
    schedule: Literal["steps", "epochs"] = "steps"
    warmup_steps: int = 0
    warmup_epochs: int = 0
    warmup_learning_rate: float = 0.0
    weight_decay: float = 0.05
    prior_learning_rate: float | None = None
    on_nonfinite: OnNonfinite = "stop"

    def check(self) -> None:
        """Raise UserError for settings that cannot work."""
        if self.schedule not in ("steps", "epochs"):
            raise UserError(f"optimization: schedule is steps or epochs, not {self.schedule!r}")
        if self.schedule == "steps" and (self.warmup_epochs or self.warmup_learning_rate):
            raise UserError(
                "optimization: warmup_epochs and warmup_learning_rate are of schedule: epochs; set warmup_steps"
            )
        if self.schedule == "epochs" and self.warmup_steps:
            raise UserError("optimization: warmup_steps is of schedule: steps; set warmup_epochs")
        if self.learning_rate_batch is not None and self.learning_rate_batch < 1:
            raise UserError(f"optimization: learning_rate_batch is {self.learning_rate_batch}; it must be at least 1")

    def highest(self, batch: int) -> float:
        """Learning rate at its highest with `batch` images a step, over all processes."""
        return self.learning_rate * (batch / self.learning_rate_batch if self.learning_rate_batch else 1.0)

    def factor(self, step: int, steps: int, highest: float | None = None) -> float:
        """Of `steps`: learning rate of the update that follows `step` of `steps` updates, over the highest."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(steps - self.warmup_steps, 1)
        floor = self.final_learning_rate / (self.learning_rate if highest is None else highest)
        return floor + (1 - floor) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


@dataclass
class TeacherConfig:
    """A classifier whose logits are matched: a timm network, or one that a system of this package has trained.

    Args:
        name: timm's name of the network.
        weights: local file with its weights.
        checkpoint: in their place, a checkpoint of `ClassificationSystem`.
    """

    name: str = ""
    weights: str = ""
    checkpoint: str | None = None

    def build(self, classes: int) -> LogitsTeacher:
        """The classifier, frozen. Raises UserError when its files are missing or hold something else."""
        if bool(self.checkpoint) == bool(self.name or self.weights):
            raise UserError("teacher: give name and weights of a timm network, or a checkpoint of this package's")
        return (
            CheckpointTeacher(self.checkpoint, classes)
            if self.checkpoint
            else TimmTeacher(self.name, self.weights, classes)
        )


class ClassificationSystem(GuardedSystem, EvaluatedSystem):
    """Trains the compress-and-classify model. The two steps differ in their configs alone.

    Step 1, whose objective has no `rate`, quantises nothing. Step 2 starts `init_from` step 1 with the rate, whose
    weight may rise slowly: step 1 leaves latents that an untrained entropy model finds impossible. The release trains
    the prior's quantiles by a second Adam at 1e-3; here they are solved by bisection, which gives what that converges
    to, so one optimizer is enough.

    Args:
        sizes: sizes of the model.
        objective: the terms of the loss and their weights, by name (`classification/losses.py`).
        optimization: optimizer and learning rates.
        init_from: checkpoint of step 1, of the same sizes.
        teacher: classifier to distil from, by a term `LogitsDistillation`.
        mixup: parameter of mixup's beta distribution; 0 for none.
        cutmix: parameter of CutMix's beta distribution; 0 for none.
        cutmix_switch: probability that a batch which may have either has CutMix.
        latents: what the receiver reads in step 2's training: `rounded` latents with the gradient of the identity, or,
            as the release, `noisy` ones, the same as the rate is estimated on. In evaluation they are rounded.
        write_streams: whether validation and test of step 2 write each image's file, whose bytes are `bpp`; see
            `CompressionSystem`.
        labels: as in `CompressionSystem`.
    """

    def __init__(
        self,
        sizes: ClassificationConfig,
        objective: dict[str, Any],
        optimization: ClassificationOptimization,
        init_from: str | None = None,
        teacher: TeacherConfig | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        cutmix_switch: float = 0.5,
        latents: Literal["rounded", "noisy"] = "rounded",
        write_streams: bool | int = True,
        labels: dict[str, str | int | float] | None = None,
    ) -> None:
        super().__init__()
        self.objective = Objective(objective)
        distils = bool(self.objective.of_kind(LogitsDistillation))
        if distils != (teacher is not None):
            raise UserError(
                f"distillation: the objective has {'a' if distils else 'no'} LogitsDistillation, and the teacher is "
                f"{'given' if teacher else 'missing'}; give both or neither"
            )
        optimization.check()
        if latents not in ("rounded", "noisy"):
            raise UserError(f"latents is rounded or noisy, not {latents!r}")
        self.noisy = latents == "noisy"
        self.model = ClassificationModel(sizes)
        self.optimization = optimization
        self.init_from = init_from
        self.write_streams = check_write_streams(write_streams) if self.quantise else False
        classes = sizes.transformer.classes
        self.teacher = teacher.build(classes) if teacher else None
        self.mixup = Mixup(classes, mixup, cutmix, cutmix_switch)
        self.guard = Guard(self, optimization.on_nonfinite)
        self._mid_step = False

    @property
    def quantise(self) -> bool:
        """Whether this is step 2."""
        return self.objective.weight("rate") > 0

    def setup(self, stage: str) -> None:
        if stage == "fit":
            refuse_loss_scaling(self)
        check_classes(self.trainer, self.model.sizes.transformer.classes)
        # A resumed run starts from its own checkpoint, and must not need the files that it once started from.
        if stage == "fit" and not self.trainer.ckpt_path and self.init_from:
            checkpoint = read_checkpoint(self.init_from, "init_from")
            load_strictly(self.model, with_prefix(checkpoint, "model."), self.init_from, "init_from")
            self.earlier_rate_updates = checkpoint.get(RATE_UPDATES)
            self.model.codec.prior.update_quantiles()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> STEP_OUTPUT:
        self._mid_step = True
        batch = self.mixup(batch)
        output = self.model(batch["image"], self.quantise, self.noisy)
        loss = self.objective(batch, output, self.teacher_logits(batch["image"]), self.global_step)
        terms = {"loss": loss.total} | loss.terms
        self.guard.see(terms, batch["name"])
        values = {f"train/{name}": value.detach() for name, value in terms.items()}
        self.log_dict(values | {"step": float(self.global_step)})
        return loss.total

    @torch.no_grad()
    def teacher_logits(self, x: Tensor) -> dict[str, Tensor] | None:
        """The teacher's "logits" (B, classes) of images (B, 3, H, W); None without a teacher."""
        return None if self.teacher is None else {"logits": self.teacher(x)}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if not self.guard.allows({"model": list(self.named_parameters())}):
            optimizer.zero_grad(set_to_none=True)  # parameters without a gradient stay as they are
            self.objective.skipped()
        else:
            rate = optimizer.param_groups[0]["lr"]
            self.log_dict({"train/learning_rate": rate, "train/gradient_norm": self.guard.norms["model"]})

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self._mid_step = False
        step = self.global_step + 1  # Lightning counts the update after this hook
        self.objective.updated(step)
        if self.quantise and (step % QUANTILE_INTERVAL == 0 or step == self.trainer.max_steps):
            self.model.codec.prior.update_quantiles()

    @property
    def generator_step(self) -> int:
        """Updates so far: there is one optimizer."""
        return self.global_step

    @property
    def mid_step(self) -> bool:
        """Whether gradients of an unfinished step are being accumulated; a checkpoint would lose them."""
        return self._mid_step

    def configure_optimizers(self) -> OptimizerLRScheduler:
        config = self.optimization
        whole = ("cls_token", "pos_embed", "codec.prior")
        names = [name for name, _ in self.model.named_parameters() if any(part in name for part in whole)]
        groups = param_groups_weight_decay(self.model, config.weight_decay, no_weight_decay_list=names)
        if config.prior_learning_rate is not None:
            prior = list(self.model.codec.prior.parameters())
            for group in groups:
                group["params"] = [p for p in group["params"] if not any(p is own for own in prior)]
            groups.append({"params": prior, "weight_decay": 0.0, "lr": config.prior_learning_rate})
        kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        highest = config.highest(self._images_per_step() if config.learning_rate_batch else 0)
        optimizer = kind(groups, lr=highest)
        if config.schedule == "epochs":
            epochs = self.trainer.max_epochs or 0
            if epochs < 1:
                raise UserError("optimization: schedule: epochs must know how many there are; set trainer.max_epochs")
            schedule: Any = CosineLRScheduler(
                optimizer,
                t_initial=epochs,
                lr_min=config.final_learning_rate,
                warmup_t=config.warmup_epochs,
                warmup_lr_init=config.warmup_learning_rate,
            )
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: config.factor(step, steps, highest))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _images_per_step(self) -> int:
        trainer = self.trainer
        return trainer.datamodule.batch_size * trainer.world_size * trainer.accumulate_grad_batches  # pyright: ignore[reportAttributeAccessIssue]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if isinstance(scheduler, CosineLRScheduler):
            scheduler.step(self.current_epoch)  # at the end of this epoch; the release passes the same number
        else:
            super().lr_scheduler_step(scheduler, metric)

    def evaluate_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Names, x and x_hat (B, 3, H, W) in [-1, 1], bits (B,), logits (B, classes) and labels (B,).

        In step 1 the bits are those of y in 32-bit floating point, as nothing is quantised, and there is no file.
        """
        output = self.model(batch["image"], self.quantise)
        return {
            "name": batch["name"],
            "x": batch["image"],
            "x_hat": output.x_hat,
            "bits_estimate": output.bits_estimate,
            "logits": output.logits,
            "label": batch["label"],
        }

    def hparam_columns(self) -> dict[str, Any]:
        """Columns of TensorBoard's HParams view beside the run's labels."""
        transformer = self.model.sizes.transformer
        return {
            "step": "2" if self.quantise else "1",
            "transformer": f"{transformer.depth}x{transformer.width}",
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["model_config"] = self.model.config | {"class_names": trained_classes(self.trainer)}
