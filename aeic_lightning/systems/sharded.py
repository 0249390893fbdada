"""A frozen base spread over the processes of a run (FSDP), beside `ddp` for what is trained.

Of the paper's size nearly all weights belong to the base: 0.80 of 0.91 billion in AEIC-SE. Each process keeps a share
of every block of the base and gathers the whole of a block when a pass comes to it, forward and backward. What is
trained (the codec, LoRA, conv_in and conv_out) stays whole on each process, with its gradients, its optimizer and its
checkpoints as they are without. So are the results, up to the order of sums.
"""

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from aeic_lightning.errors import UserError
from aeic_lightning.models.decoder import OneStepDecoder


class ShardedBase:
    """The bases of some decoders, spread over all processes.

    Args:
        system: what `ddp` will wrap; it then leaves the shares alone.
        decoders: those whose base is spread; two may share one. Each has its base already.
    """

    def __init__(self, system: LightningModule, decoders: Iterable[OneStepDecoder]) -> None:
        mesh = init_device_mesh(system.trainer.strategy.root_device.type, (system.trainer.world_size,))
        self.blocks: list[FSDPModule] = []
        for block in dict.fromkeys(block for decoder in decoders for block in base_blocks(decoder)):
            adapters = {p for name, p in block.named_parameters() if ".lora_" in name}
            for p in block.parameters():
                p.data = p.data.clone(memory_format=torch.contiguous_format)  # there are no shares of other layouts
            self.blocks.append(fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=adapters))
        ignored = [
            f"{name}.{own}"
            for name, module in system.named_modules(remove_duplicate=False)
            for own, p in module.named_parameters(recurse=False)
            if isinstance(p, DTensor)
        ]
        cast(Any, system)._ddp_params_and_buffers_to_ignore = ignored  # the name that DistributedDataParallel reads

    @classmethod
    def of(cls, system: Any) -> "ShardedBase":
        """Those of a system's model and of its teacher."""
        return cls(system, [system.model.decoder, *(system.teaching.decoders if system.teaching else ())])

    def gather(self) -> None:
        """Hold the whole base until `release`: in a validation processes may have different numbers of images, and
        one that is done would not take part in gathering."""
        with torch.inference_mode(False):  # training goes on with the same memory
            for block in self.blocks:
                block.set_reshard_after_forward(False)
                block.unshard()

    def release(self) -> None:
        """Hold a share again."""
        for block in self.blocks:
            block.set_reshard_after_forward(True)
            block.reshard()


def check_shards(system: Any) -> None:
    """Raise UserError where the base of a system cannot be spread over processes."""
    if not system.model.decoder.config.pretrained:
        raise UserError(
            "optimization.shard_base spreads the frozen base of decoder.pretrained over the processes; this "
            "decoder is trained whole, leave shard_base out"
        )
    if system.teaching is not None and system.teaching.cached:
        raise UserError(
            "optimization.shard_base: a process that finds its crops in the teacher_cache runs no teacher, and the "
            "others would wait for it; leave one of the two out"
        )


def base_blocks(decoder: OneStepDecoder) -> Iterator[nn.Module]:
    """The blocks of both networks of a decoder, which are gathered one at a time."""
    for network in (decoder.denoiser.trunk, decoder.vae):
        for name, child in network.named_children():
            if isinstance(child, nn.ModuleList):
                yield from child
            elif name == "mid_block":
                yield child
