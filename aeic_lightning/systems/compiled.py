"""Blocks of a training step compiled by `torch.compile`, so that their chains of small operations are few kernels."""

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from aeic_lightning.models.decoder.blocks import Resnet, TransformerLayer
from aeic_lightning.models.layers import ContextLayer, StarBlock

BLOCKS = (StarBlock, ContextLayer, Resnet, TransformerLayer)
"""What is compiled: the chains of small operations are inside these."""
MOST_FORMS = 256
"""All blocks share the code of `nn.Module`'s call, of which PyTorch by itself compiles eight forms and leaves the rest
as it is; each width and size of a block is one."""


class CompiledBlocks:
    """The blocks of some models: compiled while the context `active` lasts, and as they are at other times.

    Args:
        backend: of `torch.compile`; True for its default, False to compile nothing.
        models: whose blocks they are.
        watched: paths of modules that may have hooks. A block with one of them inside stays as it is: compiled code
            may go on calling the hooks of its first pass.
    """

    def __init__(
        self, backend: bool | str | Callable[..., Any], *models: nn.Module, watched: Set[str] = frozenset()
    ) -> None:
        self.calls: list[tuple[nn.Module, Callable[..., Any]]] = []
        if not backend:
            return
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, MOST_FORMS)
        for path, block in (named for model in models for named in model.named_modules()):
            if isinstance(block, BLOCKS) and not any(f"{name}.".startswith(f"{path}.") for name in watched):
                # What `block.compile()` does for good. Crops have one size; code for any size would be slower.
                by = "inductor" if backend is True else backend
                self.calls.append((block, torch.compile(block._call_impl, backend=by, dynamic=False)))

    @classmethod
    def of(cls, system: Any) -> "CompiledBlocks":
        """Those of a system's model and of its teacher's, by `optimization.compile`."""
        models = [m for m in (system.model, getattr(system.teaching, "model", None)) if m is not None]
        watched = {*system.objective.student_taps, *system.objective.teacher_taps}
        watched |= {str(tap.path) for model in models for tap in getattr(model, "encoder_taps", ())}
        return cls(system.optimization.compile, *models, watched=watched)

    @contextmanager
    def active(self) -> Iterator[None]:
        for block, call in self.calls:
            block._compiled_call_impl = call
        try:
            yield
        finally:
            for block, _ in self.calls:
                block._compiled_call_impl = None
