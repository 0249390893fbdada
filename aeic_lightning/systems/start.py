"""Warm starts: an earlier stage or a teacher's receiver, and which of its tensors a new run takes over."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from aeic_lightning.checkpoints.checkpoint import (
    RATE_UPDATES,
    check_base,
    check_fits,
    load_strictly,
    read_checkpoint,
    solve_prior,
    with_prefix,
)
from aeic_lightning.errors import UserError, did_you_mean
from aeic_lightning.models.aeic import AEIC, REALISTIC
from aeic_lightning.models.decoder import OneStepDecoder
from aeic_lightning.models.decoder.restoration import Restoration
from aeic_lightning.models.decoder.stable_diffusion import base_digests, split_decoder

Counts = dict[str, list[int]]
"""Part of the model -> [tensors that were taken over, tensors that it has]."""
ENTROPY_MODEL = {"codec.h_a", "codec.prior", "codec.h_s", "codec.context"}
"""Parts whose training a model's count of rate updates tells of."""


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


# ---------------------------------------------------------------------- a system's start


class Start:
    """The checkpoints that a new run starts from; a resumed one needs none of them.

    Args:
        init_from: of the stage before, of the same sizes; the whole model starts from it. With
            `{path: ..., only: [codec.h_a, decoder]}` those modules alone do (`StartFrom`).
        receiver_from: a teacher's. The decoder starts from the teacher's, and so does g_s wherever its shapes agree
            (all but its first adapter when M differs). It is refused where less than half of g_s fits, and where the
            decoder does not, unless it is `{path: ..., partial: true}`. Where the decoder is an adapter over the
            decoder of this very teacher (`export --base`), it starts there without being loaded. Not used together
            with `init_from`.
    """

    def __init__(self, init_from: str | StartFrom | None = None, receiver_from: str | StartFrom | None = None) -> None:
        if receiver_from and init_from:
            raise UserError("student: give receiver_from or init_from, not both; init_from already has a receiver")
        self.init_from = None if init_from is None else StartFrom.of(init_from, "init_from")
        self.receiver_from = None if receiver_from is None else StartFrom.of(receiver_from, "receiver_from")
        if self.receiver_from and self.receiver_from.only:
            raise UserError("receiver_from takes g_s and the decoder; for other parts use init_from: {path, only}")

    def load(self, system: Any) -> None:
        """Load what is given into a system, after what its decoder's config names."""
        load_restoration(system)
        if self.init_from:
            load_stage(system, self.init_from)
        if self.receiver_from:
            load_receiver(system, self.receiver_from)


def load_restoration(system: Any) -> None:
    """Start the restoration network of the VAE decoder from trained weights, where the config names some."""
    decoder: OneStepDecoder | None = getattr(system.model, "decoder", None)
    if decoder is None:
        return
    network, config = decoder.vae.conv_out, decoder.config.vae.restoration
    if isinstance(network, Restoration) and config and config.weights:
        taken = network.load_trained(config.weights)
        note(system, "restoration", config.weights, {"decoder.vae.conv_out": [taken, len(network.state_dict())]})


def load_stage(system: Any, start: StartFrom) -> None:
    """Start from the model of an earlier stage and its projections, wherever the objective has the same ones, or from
    parts of the model."""
    model, path, role = system.model, start.path, "init_from"
    checkpoint = read_checkpoint(path, role)
    if not start.only or any(part.startswith("decoder") for part in start.only):
        check_base(model, checkpoint, path, role)
    counts = take_over(model, with_prefix(checkpoint, "model."), start, role)
    if counts.get("codec.prior", [0])[0]:
        solve_prior(model.prior, checkpoint)  # a checkpoint has those of training
    note(system, role, path, counts)
    entropy_model = ENTROPY_MODEL & {".".join(name.split(".")[:2]) for name in model.state_dict()}
    if all(part in counts and counts[part][0] == counts[part][1] for part in entropy_model):
        system.earlier_rate_updates = checkpoint.get(RATE_UPDATES)
    if not start.only:
        load_projections(system, checkpoint, path)


def load_projections(system: Any, checkpoint: dict[str, Any], path: str) -> None:
    """Start the 1x1 convolutions of terms that compare taps from those of an earlier stage."""
    taken, state = [], with_prefix(checkpoint, "objective.terms.")
    for name, term in system.objective.terms.items():
        for key, projection in getattr(term, "projections", {}).items():
            prefix = f"{name}.projections.{key}."
            own = {k: state[prefix + k] for k in projection.state_dict() if prefix + k in state}
            if own:
                load_strictly(projection, own, path, "init_from (a projection)")
                taken += own
    if taken:
        every = [name for name, _ in system.objective.terms.named_parameters() if ".projections." in name]
        note(system, "init_from (projections)", path, {"objective": [len(taken), len(every)]})


def load_receiver(system: Any, start: StartFrom) -> None:
    """Start from the receiver's half of a teacher."""
    role, path, model = "receiver_from", start.path, cast(AEIC, system.model)
    checkpoint = read_checkpoint(path, role)
    check_base(model, checkpoint, path, role)
    ours, theirs = model.codec.g_s.state_dict(), with_prefix(checkpoint, "model.codec.g_s.")
    fit = [name for name, tensor in theirs.items() if name in ours and ours[name].shape == tensor.shape]
    if 2 * len(fit) < len(ours) and not start.partial:
        raise UserError(
            f"{role}: {path}: only {len(fit)} of {len(ours)} tensors of codec.g_s fit; give this run the teacher's "
            f"synthesis_widths and depths, or accept it with {role}: {{path: {path}, partial: true}}"
        )
    decoder = with_prefix(checkpoint, "model.decoder.")
    counts = {}
    if not is_base(decoder, model.decoder.base_digests):
        counts = take_over(model.decoder, decoder, start, f"{role} (the decoder)")
        counts = {"decoder": [sum(column) for column in zip(*counts.values(), strict=True)]}
    model.codec.g_s.load_state_dict(ours | {name: theirs[name] for name in fit})
    note(system, role, path, {"codec.g_s": [len(fit), len(ours)]} | counts)


def note(system: Any, role: str, path: str | Path, counts: Counts) -> None:
    """Print what a warm start took over, and keep it for the run's record."""
    if system.trainer_is_first:
        system.started_from.append(announce(role, str(path), counts))


def is_base(decoder: dict[str, Tensor], digests: dict[str, str] | None) -> bool:
    """Whether the tensors of a whole decoder are the base with these digests."""
    if digests is None or not any(name.startswith("vae.") for name in decoder):
        return False
    return base_digests(*split_decoder(decoder)) == digests
