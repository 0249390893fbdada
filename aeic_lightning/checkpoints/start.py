"""Warm starts: which tensors of a checkpoint a new run takes over, and the count of them."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from aeic_lightning.checkpoints.checkpoint import REALISTIC, check_fits
from aeic_lightning.errors import UserError, did_you_mean

Counts = dict[str, list[int]]
"""Part of the model -> [tensors that were taken over, tensors that it has]."""


@dataclass(frozen=True)
class StartFrom:
    """A checkpoint that a run starts from, where its path alone does not say enough.

    Args:
        path: a checkpoint, a folder of weights, or the name of a shipped model.
        only: modules of the model that start from it, by path: `codec.h_a`, `decoder`. The others keep their initial
            weights. Default: all.
        partial: take over the tensors whose shapes agree, however few, instead of refusing the checkpoint.
    """

    path: str
    only: list[str] = field(default_factory=list)
    partial: bool = False

    @classmethod
    def of(cls, value: "StartFrom | Mapping[str, Any] | str | Path", role: str) -> "StartFrom":
        """From a path, or from a mapping as it stands in YAML; `role` is the setting's name."""
        if isinstance(value, StartFrom):
            return value
        try:
            return cls(str(value)) if isinstance(value, str | Path) else cls(**value)
        except TypeError as error:
            raise UserError(f"{role}: {value!r} is no start; write a path, or {{path: ..., only: [...]}}") from error


def take_over(model: nn.Module, state: Mapping[str, Tensor], start: StartFrom, role: str) -> Counts:
    """Load the tensors of `state` that `start` names into `model`; returns how many, by part.

    Raises UserError for a module that the model does not have, and where a tensor does not fit and `start.partial` is
    false. Nothing is changed then.
    """
    own = model.state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.startswith(REALISTIC)}
    chosen = dict(own)
    if start.only:
        for path in start.only:
            if not any(name.startswith(f"{path}.") for name in own):
                known = [name for name, _ in model.named_modules() if name]
                raise UserError(f"{role}: only: the model has no weights in {path!r}{did_you_mean(path, known)}")
        chosen = {name: own[name] for name in own if any(name.startswith(f"{path}.") for path in start.only)}
    elif not start.partial:
        check_fits(model, dict(state), start.path, role)
    misfit = next((name for name in chosen if not _fits(name, state, own)), None)
    if misfit and not start.partial:
        theirs = f"as {list(state[misfit].shape)}" if misfit in state else "not at all"
        raise UserError(
            f"{role}: {start.path} holds {misfit} {theirs}, the config asks for {list(own[misfit].shape)}; leave its "
            "module out of `only`, or say partial: true"
        )
    taken = {name: state[name] for name in chosen if _fits(name, state, own)}
    if not taken:
        raise UserError(f"{role}: {start.path}: none of {len(chosen)} tensors fits this model; leave {role} out")
    model.load_state_dict(own | taken)
    return count(taken, chosen)


def count(taken: Iterable[str], chosen: Iterable[str]) -> Counts:
    """How many of the chosen tensors were taken over, by the part that they belong to: `codec.g_s`, `decoder.vae`."""
    found: Counts = {}
    taken = set(taken)
    for name in chosen:
        of = found.setdefault(".".join(name.split(".")[:2]), [0, 0])
        of[0] += name in taken
        of[1] += 1
    return found


def describe(role: str, path: str, counts: Counts) -> str:
    """One line: `init_from: small-teacher: 96 of 98 tensors (codec.g_s 54 of 56)`; only parts that lack some."""
    taken, chosen = (sum(numbers[i] for numbers in counts.values()) for i in (0, 1))
    lacking = ", ".join(f"{part} {a} of {b}" for part, (a, b) in counts.items() if a < b)
    return f"{role}: {path}: {taken} of {chosen} tensors" + (f" ({lacking})" if lacking else "")


def announce(role: str, path: str, counts: Counts) -> dict[str, Any]:
    """Say on standard error what was taken over; returns the entry of the run's record."""
    print(describe(role, path, counts), file=sys.stderr, flush=True)
    return {"role": role, "path": path, "tensors": counts}


def _fits(name: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    return name in state and state[name].shape == own[name].shape
