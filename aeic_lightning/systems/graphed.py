"""A training step's two passes as one CUDA graph.

A step of the small sizes is some thousands of kernels of a few microseconds each; to launch them one by one takes the
CPU longer than the GPU needs to run them. A graph records the launches once, with the addresses of all tensors, and
replays them together. What a replay reads must therefore lie where it lay when it was recorded: images, rate levels and
weights of the terms are copied there before it, and gradients and losses are found where the recording left them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from aeic_lightning.errors import UserError
from aeic_lightning.losses.objective import ObjectiveOutput
from aeic_lightning.losses.term import Rate

EAGER_STEPS = 3
"""Steps that run as usual first, in which libraries choose their kernels and take their memory."""


class GraphedPass:
    """The passes of batch after batch, from the fourth on as a replay.

    Noise is drawn anew by every replay, from the generator that each batch seeds. A batch of other size runs as usual.

    Args:
        module: on a CUDA device; its parameters get the gradients.
        passes: both passes of a batch, from its images and the further inputs as keywords; returns the losses.
        inputs: what else differs from step to step, as tensors on the device, for a batch.
    """

    def __init__(
        self,
        module: nn.Module,
        passes: Callable[..., ObjectiveOutput],
        inputs: Callable[[dict[str, Any]], dict[str, Tensor]],
    ) -> None:
        self.module, self.passes, self.further = module, passes, inputs
        self.side = torch.cuda.Stream()
        self.seen = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: dict[str, Tensor] = {}
        self.loss = ObjectiveOutput(torch.zeros(()), {})
        self.gradients: list[tuple[nn.Parameter, Tensor]] = []

    @classmethod
    def of(cls, system: Any) -> "GraphedPass":
        """Of a system's `both_passes`."""

        def inputs(batch: dict[str, Any]) -> dict[str, Tensor]:
            weights = torch.tensor(system.objective.weights_at(system.global_step))
            weights = weights.to(system.device, non_blocking=True)  # else the CPU waits for all before
            level = system.model.draw_levels(len(batch["image"]), system.optimization.level)
            return {"weights": weights} | ({} if level is None else {"level": level})

        return cls(system, lambda batch, **given: system.both_passes(batch, **given)[0], inputs)

    def __call__(self, batch: dict[str, Any]) -> ObjectiveOutput:
        """Losses of the batch; the parameters have its gradients."""
        inputs = {"image": batch["image"]} | self.further(batch)
        fits = all(self.inputs[name].shape == value.shape for name, value in inputs.items() if name in self.inputs)
        if self.seen < EAGER_STEPS or not fits:
            self.seen += 1
            return self._eagerly(inputs)
        graph = self.graph or self._record(inputs)
        for name, value in inputs.items():
            self.inputs[name].copy_(value, non_blocking=True)
        graph.replay()
        for p, gradient in self.gradients:
            p.grad = gradient
        # Copies: the next replay writes over these.
        total, *terms = torch.stack([self.loss.total, *self.loss.terms.values()]).unbind()
        return ObjectiveOutput(total, dict(zip(self.loss.terms, terms, strict=True)))

    def _pass(self, inputs: dict[str, Tensor]) -> ObjectiveOutput:
        return self.passes({"image": inputs["image"]}, **{k: v for k, v in inputs.items() if k != "image"})

    def _eagerly(self, inputs: dict[str, Tensor]) -> ObjectiveOutput:
        # On another stream than the default one, on which nothing can be recorded.
        current = torch.cuda.current_stream()
        self.side.wait_stream(current)
        with torch.cuda.stream(self.side):
            loss = self._pass(inputs)
        current.wait_stream(self.side)
        return loss

    def _record(self, inputs: dict[str, Tensor]) -> torch.cuda.CUDAGraph:
        self.inputs = {name: value.clone() for name, value in inputs.items()}
        self.module.zero_grad(set_to_none=True)  # so that the recorded backward pass makes the gradients, in its memory
        self.graph = torch.cuda.CUDAGraph()
        # thread_local: the loader's thread may go on pinning memory meanwhile.
        with torch.cuda.graph(self.graph, stream=self.side, capture_error_mode="thread_local"):
            loss = self._pass(self.inputs)
        self.loss = ObjectiveOutput(loss.total.detach(), {name: term.detach() for name, term in loss.terms.items()})
        self.gradients = [(p, p.grad) for p in self.module.parameters() if p.grad is not None]
        return self.graph


def check_graph(system: Any) -> None:
    """Raise UserError where a system's step cannot be replayed: it needs the CPU in its middle."""
    stays = not system.classes and (system.teaching is None or system.teaching.replayable)
    reasons = {
        "a GPU (trainer.accelerator: gpu)": system.trainer.strategy.root_device.type != "cuda",
        "optimization.accumulate: 1": system.optimization.accumulate > 1,
        "an objective without an adversary": system.objective.adversary is not None,
        "an objective without rate.target": any(term.target for term in system.objective.of_kind(Rate)),
        "one process": system.trainer.world_size > 1,
        "a step of images alone (no labels, teacher_cache or online distillation)": not stays,
    }
    for needed, lacking in reasons.items():
        if lacking:
            raise UserError(f"optimization.cuda_graph needs {needed}; leave it out")
