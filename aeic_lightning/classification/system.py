"""Training of compress-and-classify: its own two steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from aeic_lightning.classification.losses import LogitsDistillation
from aeic_lightning.classification.model import ClassificationConfig, ClassificationModel, ClassificationOutput
from aeic_lightning.classification.targets import Mixup
from aeic_lightning.classification.teacher import CheckpointTeacher, LogitsTeacher, TimmTeacher
from aeic_lightning.errors import UserError
from aeic_lightning.systems.compression import CompressionSystem
from aeic_lightning.systems.optimization import OnNonfinite, Optimization
from aeic_lightning.systems.start import Start, StartFrom
from aeic_lightning.systems.teachers import Teacher

# Steps between two solutions for the prior's quantiles. Where z rounds to its median, the median is what h_s reads: if
# solved seldom under a prior that learns fast, it jumps, and every mean of y with it.
QUANTILE_INTERVAL = 10


@dataclass
class ClassificationOptimization(Optimization):
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
            "skip" the update and count it.
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

    @property
    def quantile_interval(self) -> int:
        return QUANTILE_INTERVAL

    def make_optimizer(self, trained: dict[str, nn.Parameter], system: LightningModule) -> torch.optim.Optimizer:
        trainer = system.trainer
        prior = [p for name, p in trained.items() if "codec.prior" in name]
        own = prior if self.prior_learning_rate is not None else []
        whole = ("cls_token", "pos_embed", "codec.prior")
        rest = [(p, p.ndim > 1 and not any(part in name for part in whole)) for name, p in trained.items()
                if not any(p is other for other in own)]  # fmt: skip
        images = trainer.datamodule.batch_size * trainer.world_size * self.accumulate if self.learning_rate_batch else 0  # pyright: ignore[reportAttributeAccessIssue]
        rate = self.highest(images)
        groups: list[dict[str, Any]] = [
            {"params": [p for p, decays in rest if decays == chosen], "weight_decay": decay, "initial_lr": rate}
            for chosen, decay in ((False, 0.0), (True, self.weight_decay))
        ]
        if own:
            groups.append({"params": own, "weight_decay": 0.0, "initial_lr": self.prior_learning_rate})
        if self.schedule == "epochs":
            self.length = trainer.max_epochs or 0
            if self.length < 1:
                raise UserError("optimization: schedule: epochs must know how many there are; set trainer.max_epochs")
        else:
            batches = int(trainer.estimated_stepping_batches)
            self.length = batches if batches == trainer.max_steps else -(-batches // self.accumulate)
        kind = torch.optim.AdamW if self.optimizer == "adamw" else torch.optim.Adam
        return kind(groups, lr=rate)

    def set_rates(self, generator: Any, step: int, max_steps: int, epoch: int) -> None:
        for group in generator.param_groups:
            if self.schedule == "epochs":
                group["lr"] = self.rate_in(epoch, self.length, group["initial_lr"])
            else:
                group["lr"] = group["initial_lr"] * self.factor(
                    step, self.length, generator.param_groups[0]["initial_lr"]
                )

    def rate_in(self, epoch: int, epochs: int, highest: float) -> float:
        """Of `epochs`: learning rate in one of them, counted from 0."""
        late = max(epoch - 1, 0)
        if late < self.warmup_epochs:
            step = (highest - self.warmup_learning_rate) / self.warmup_epochs
            return self.warmup_learning_rate + late * step
        final = self.final_learning_rate
        return final + 0.5 * (highest - final) * (1 + math.cos(math.pi * late / epochs))

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


def take_over(optimization: Optimization, trainer: Trainer) -> None:
    """Clip and accumulate as the trainer is told to, which Lightning itself refuses for steps that are taken by hand.

    The norm that is bounded is that of all gradients together.
    """
    if trainer.gradient_clip_val:
        optimization.gradient_clip, trainer.gradient_clip_val = float(trainer.gradient_clip_val), None
    if trainer.accumulate_grad_batches > 1:
        optimization.accumulate, trainer.accumulate_grad_batches = trainer.accumulate_grad_batches, 1


class LogitsOf(Teacher):
    """A classifier as a system's teacher: its "logits" (B, classes).

    Args:
        net: the classifier.
    """

    def __init__(self, net: LogitsTeacher) -> None:
        self.net = net

    def join(self, system: Any) -> None:
        system.teacher = self.net

    @torch.no_grad()
    def taps(self, x: Tensor, level: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.net(x)}


class ClassificationSystem(CompressionSystem):
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
        init_from: str | StartFrom | None = None,
        teacher: TeacherConfig | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        cutmix_switch: float = 0.5,
        latents: Literal["rounded", "noisy"] = "rounded",
        write_streams: bool | int = True,
        labels: dict[str, str | int | float] | None = None,
    ) -> None:
        if latents not in ("rounded", "noisy"):
            raise UserError(f"latents is rounded or noisy, not {latents!r}")
        classes = sizes.transformer.classes
        start = Start(init_from)
        model = ClassificationModel(sizes)
        logits = LogitsOf(teacher.build(classes)) if teacher else None
        super().__init__(model, objective, optimization, start, logits, write_streams, labels)
        distils = bool(self.objective.of_kind(LogitsDistillation))
        if distils != (teacher is not None):
            raise UserError(
                f"distillation: the objective has {'a' if distils else 'no'} LogitsDistillation, and the teacher is "
                f"{'given' if teacher else 'missing'}; give both or neither"
            )
        self.sizes = sizes
        self.noisy = latents == "noisy"
        self.quantise = self.has_density = self.objective.weight("rate") > 0  # whether this is step 2
        self.write_streams = self.write_streams if self.quantise else False
        self.mixup = Mixup(classes, mixup, cutmix, cutmix_switch)
        self.classes = classes

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """Called before Lightning looks at the trainer's settings."""
        take_over(self.optimization, self.trainer)
        return []

    def forward(self, x: Tensor, level: Tensor | float | None = None) -> ClassificationOutput:
        """Images (B, 3, H, W) in [-1, 1] -> what the objective reads; there are no rate levels."""
        return self.model(x, self.quantise, self.noisy)

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
        transformer = self.sizes.transformer
        return {
            "step": "2" if self.quantise else "1",
            "transformer": f"{transformer.depth}x{transformer.width}",
        }
