"""A part of a model that is kept but not run."""

from collections.abc import Mapping

from torch import Tensor, nn


class Stored(nn.Module):
    """Tensors under their names: the fingerprint of a stream covers them, and nothing computes with them."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in state.items():
            *parents, last = name.split(".")
            module: nn.Module = self
            for parent in parents:
                children = dict(module.named_children())
                if parent not in children:
                    module.add_module(parent, nn.Module())
                module = module.get_submodule(parent)
            module.register_buffer(last, tensor)
