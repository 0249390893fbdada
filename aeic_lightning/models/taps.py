"""Taps: the tensors of a model that distillation can match.

Each part declares its own once, as `taps`: the codec y, z, phi, y_hat, l_T and l_res, the denoiser l_0, h_0 ... h_8.
So may an encoder from elsewhere, whose taps are outputs of its modules: `self.taps = [Tap("mid", "encoder", 32, 8,
path="body.4")]`.
The output of any other module is a tap too, under the module's path: `decoder.denoiser.trunk.mid_block`. Forward hooks
collect those during the one pass (`AEIC.forward`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aeic_lightning.errors import UserError
from aeic_lightning.models.frozen import keeping_modes

Side = Literal["encoder", "decoder"]


@dataclass(frozen=True)
class Tap:
    """One tap: a tensor (B, channels, H / stride, W / stride), H and W being those of the padded image.

    Args:
        name: its name, or the path of the module that gives it.
        side: which half of the distillation it belongs to: `encoder` (L_enc) or `decoder` (L_dec).
        channels: its channels.
        stride: pixels of the image per position.
        path: of a part from elsewhere: the module, seen from the part, whose output the tap is. Default: its name.
    """

    name: str
    side: Side
    channels: int
    stride: int
    path: str | None = None


def own_taps(part: nn.Module, at: str, others: Iterable[Tap]) -> list[Tap]:
    """The taps that a part from elsewhere declares as `taps`, their paths seen from the model, in which it is at `at`.

    Raises UserError for what is no tap, for a name that another tap has, and for a path that leads nowhere.
    """
    found: list[Tap] = []
    taken, modules = {tap.name for tap in others}, {path for path, _ in part.named_modules()}
    for tap in getattr(part, "taps", None) or []:
        kind = type(part).__name__
        if not isinstance(tap, Tap):
            raise UserError(f"{kind}.taps holds {tap!r}; declare taps as Tap(name, side, channels, stride)")
        path = tap.name if tap.path is None else tap.path
        if tap.name in taken:
            raise UserError(f"{kind}.taps: there is a tap {tap.name!r} already; choose another name")
        if path not in modules or not path:
            raise UserError(f"{kind}.taps: {tap.name!r} is the output of {path!r}, which is no module of it; set path")
        taken.add(tap.name)
        found.append(replace(tap, path=f"{at}.{path}"))
    return found


def find_taps(model: nn.Module, declared: Iterable[Tap], names: Iterable[str], role: str = "model") -> dict[str, Tap]:
    """The taps of these names, declared or module paths, whose sizes one pass without data finds (meta device).

    Args:
        model: what takes images (B, 3, H, W).
        declared: the taps that it declares, at least one.
        names: of the taps to find.
        role: what the messages call the model.

    Raises UserError for a name that is neither, and for a module whose output is not one map (B, C, h, w) a pass.
    """
    declared = list(declared)
    known = {tap.name: tap for tap in declared}
    modules = {path for path, _ in model.named_modules() if path}
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in known and name not in modules:
            near = get_close_matches(name, known, n=1) or get_close_matches(name, modules, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"taps are {', '.join(known)}, and module paths"
            raise UserError(f"distillation: the {role} has no tap {name!r}; {hint}")
    own = {tap.path: tap for tap in declared if tap.path and tap.name in names}
    paths = [*(name for name in names if name not in known), *own]
    if paths:
        # Four positions of the coarsest tap along each side.
        probed = _probe(model, paths, 4 * max(tap.stride for tap in known.values()), role)
        for path, tap in own.items():
            found = probed.pop(path)
            if (found.channels, found.stride) != (tap.channels, tap.stride):
                raise UserError(
                    f"distillation: the {role} declares tap {tap.name!r} with {tap.channels} channels at stride "
                    f"{tap.stride}, but {path} gives {found.channels} at {found.stride}; correct `taps`"
                )
        known |= probed
    return {name: known[name] for name in names}


@contextmanager
def hooked(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the modules at these paths, by path, while the context lasts; the first of a tuple."""
    found: dict[str, Tensor] = {}
    with _watched(model, paths, found.__setitem__):
        yield found


@contextmanager
def _watched(model: nn.Module, paths: Sequence[str], see: Callable[[str, Any], None]) -> Iterator[None]:
    """Give each output of the modules at these paths to `see`, with its path, while the context lasts."""

    def hook(path: str):
        return lambda module, inputs, output: see(path, _first(output))

    handles = [model.get_submodule(path).register_forward_hook(hook(path)) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def side_of(path: str) -> Side:
    """The side of a module's output: what is before y_hat belongs to the encoder's, the rest to the decoder's."""
    return "decoder" if path.startswith(("decoder", "codec.g_s")) else "encoder"


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple | list) else output


def _probe(model: nn.Module, paths: list[str], side: int, role: str) -> dict[str, Tap]:
    outputs: dict[str, list[Any]] = {path: [] for path in paths}
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    see = _watched(model, paths, lambda path, output: outputs[path].append(output))
    with see, keeping_modes(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        on_meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
        torch.func.functional_call(model.train(), on_meta, (torch.empty(1, 3, side, side, device="meta"),))
    for path, found in outputs.items():
        if len(found) != 1:
            raise UserError(f"distillation: {path} of the {role} runs {len(found)} times a pass; a tap runs once")
        if not isinstance(found[0], Tensor) or found[0].ndim != 4 or side % found[0].shape[-1]:
            shape = tuple(found[0].shape) if isinstance(found[0], Tensor) else type(found[0]).__name__
            raise UserError(f"distillation: {path} of the {role} gives {shape}, not a map (B, C, h, w); take another")
    return {path: Tap(path, side_of(path), out.shape[1], side // out.shape[-1]) for path, (out,) in outputs.items()}
