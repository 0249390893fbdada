"""A decoder that is kept but not run, in a sender."""

from collections.abc import Mapping

from torch import Tensor, nn


class StoredDecoder(nn.Module):
    """The tensors of a decoder under their names: the fingerprint of a stream covers them.

    The sender does not compute with them, so neither the networks nor their libraries are needed.
    """

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
