"""A training step's two passes as one CUDA graph.

A step of the small sizes is some thousands of kernels of a few microseconds each; to launch them one by one takes the
CPU longer than the GPU needs to run them. A graph records the launches once, with the addresses of all tensors, and
replays them together. What a replay reads must therefore lie where it lay when it was recorded: images, rate levels and
weights of the terms are copied there before it, and gradients and losses are found where the recording left them.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aeic_lightning.losses.objective import ObjectiveOutput

if TYPE_CHECKING:
    from aeic_lightning.systems.compression import CompressionSystem

EAGER_STEPS = 3
"""Steps that run as usual first, in which libraries choose their kernels and take their memory."""


class GraphedPass:
    """Calls a system's `both_passes`, from the fourth batch on as a replay.

    Noise is drawn anew by every replay, from the generator that each batch seeds. A batch of other size runs as usual.

    Args:
        system: on a CUDA device.
    """

    def __init__(self, system: "CompressionSystem") -> None:
        self.system = system
        self.side = torch.cuda.Stream(system.device)
        self.seen = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: dict[str, Tensor] = {}
        self.loss: ObjectiveOutput | None = None
        self.gradients: list[tuple[torch.nn.Parameter, Tensor]] = []

    def __call__(self, batch: dict[str, Any]) -> ObjectiveOutput:
        """Losses of the batch; the parameters have its gradients."""
        inputs = self._inputs(batch)
        fits = all(self.inputs[name].shape == value.shape for name, value in inputs.items() if name in self.inputs)
        if self.seen < EAGER_STEPS or not fits:
            self.seen += 1
            return self._eagerly(inputs)
        if self.graph is None:
            self._record(inputs)
        for name, value in inputs.items():
            self.inputs[name].copy_(value, non_blocking=True)
        assert self.graph is not None
        assert self.loss is not None
        self.graph.replay()
        for p, gradient in self.gradients:
            p.grad = gradient
        # Copies: the next replay writes over these.
        total, *terms = torch.stack([self.loss.total, *self.loss.terms.values()]).unbind()
        return ObjectiveOutput(total, dict(zip(self.loss.terms, terms, strict=True)))

    def _inputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """All that differs from step to step, on the GPU."""
        system = self.system
        image, weights = batch["image"], system.objective.weights_at(system.global_step)
        inputs = {"image": image, "weights": torch.tensor(weights).to(image, non_blocking=True)}
        level = system.model.codec.levels(len(image))
        return inputs if level is None else inputs | {"level": level}

    def _pass(self, inputs: dict[str, Tensor]) -> ObjectiveOutput:
        batch = {"image": inputs["image"]}
        loss, _ = self.system.both_passes(batch, inputs.get("level"), weights=inputs["weights"])
        return loss

    def _eagerly(self, inputs: dict[str, Tensor]) -> ObjectiveOutput:
        # On another stream than the default one, on which nothing can be recorded.
        current = torch.cuda.current_stream()
        self.side.wait_stream(current)
        with torch.cuda.stream(self.side):
            loss = self._pass(inputs)
        current.wait_stream(self.side)
        return loss

    def _record(self, inputs: dict[str, Tensor]) -> None:
        self.inputs = {name: value.clone() for name, value in inputs.items()}
        self.system.zero_grad(set_to_none=True)  # so that the recorded backward pass makes the gradients, in its memory
        self.graph = torch.cuda.CUDAGraph()
        # thread_local: the loader's thread may go on pinning memory meanwhile.
        with torch.cuda.graph(self.graph, stream=self.side, capture_error_mode="thread_local"):
            loss = self._pass(self.inputs)
        self.loss = ObjectiveOutput(loss.total.detach(), {name: term.detach() for name, term in loss.terms.items()})
        self.gradients = [(p, p.grad) for p in self.system.parameters() if p.grad is not None]
