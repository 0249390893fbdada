"""The objective: the one place where the terms of a loss are built and summed.

    L = sum over the terms of weight x value,    AEIC: lambda R + g1 MSE + g2 perceptual + g3 semantic + g4 adversarial
                                                       + beta1 L_enc + beta2 L_dec

In YAML it maps each term's name to what it is, so that an including file changes one weight without repeating the rest:

    objective:
      rate: {weight: 0.8, warmup_steps: 400}       # a shipped term, by its short name
      mse: 2.0                                     # the same, its weight alone
      lpips: {weight: 1.0, backbone: vgg}          # whatever is none of Entry's fields is an argument of the class
      edge_dists: {weight: 0.5, share: 0.5}        # on half of the crops, drawn anew each step: the costly terms
      semantic: 0                                  # neither built nor computed; null does the same
      mine: {class_path: my_package.MyTerm, weight: 0.1, init_args: {sigma: 3}}
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from aeic_lightning.errors import UserError, did_you_mean
from aeic_lightning.losses.adversarial import Adversarial
from aeic_lightning.losses.tap_term import (
    AttentionTransfer,
    CosineDistillation,
    FeatureDistillation,
    RelationalDistillation,
    TapTerm,
)
from aeic_lightning.losses.term import MSE, Chroma, Description, EdgeAwareDISTSTerm, LPIPSTerm, Rate, SemanticTerm, Term
from aeic_lightning.metrics.features import Pair
from aeic_lightning.models.base import CompressionModel
from aeic_lightning.own_classes import arguments_of, find_class

Kind = TypeVar("Kind", bound=Term)

SHIPPED: dict[str, tuple[type[Term], dict[str, Any]]] = {
    "rate": (Rate, {}),
    "mse": (MSE, {}),
    "chroma": (Chroma, {}),
    "lpips": (LPIPSTerm, {}),
    "edge_dists": (EdgeAwareDISTSTerm, {}),
    "semantic": (SemanticTerm, {}),
    "adversarial": (Adversarial, {}),
    "L_enc": (FeatureDistillation, {"side": "encoder"}),
    "L_dec": (FeatureDistillation, {"side": "decoder"}),
    "cosine": (CosineDistillation, {}),
    "attention": (AttentionTransfer, {}),
    "relational": (RelationalDistillation, {}),
}
"""Terms with a short name: class, and arguments that the name stands for."""


RESERVED: tuple[str, ...] = ("loss", "discriminator", "discriminator_real", "discriminator_fake")
"""Names in the log that are not a term's."""


@dataclass(frozen=True)
class Entry:
    """One line of the objective, not built yet.

    Args:
        name: of the term.
        weight: what its value is multiplied by.
        warmup_steps: updates over which the weight rises linearly from 0.
        share: of the images of a training batch that the term sees, drawn anew for each step. Terms of equal share
            see the same ones.
        kind, arguments: its class, and what it is built with.
    """

    name: str
    weight: float
    warmup_steps: int
    share: float
    kind: type[Term]
    arguments: dict[str, Any]

    def describe(self) -> Description:
        """What is known of the term without building it."""
        return self.kind.describe(**self.arguments)

    def build(self) -> Term:
        """The term itself."""
        return self.kind(**self.arguments)

    def weight_at(self, step: int | None) -> float:
        """The weight of the update that follows `step` updates; it rises linearly from 0 over `warmup_steps`."""
        if step is None or not self.warmup_steps:
            return self.weight
        return self.weight * min(1.0, step / self.warmup_steps)


class ObjectiveOutput(NamedTuple):
    """The weighted total, and each term by its name in the log, before its weight; all scalars."""

    total: Tensor
    terms: dict[str, Tensor]


class Objective(nn.Module):
    """Weighted sum of terms.

    Args:
        terms: name -> weight, or mapping with `weight`, `warmup_steps`, `class_path` and the class's arguments.

    Raises UserError for a term that is unknown or cannot be built, and where no term has a weight.
    """

    def __init__(self, terms: Mapping[str, Any]) -> None:
        super().__init__()
        self.entries = read_objective(terms)
        if not self.entries:
            raise UserError("objective: no term has a weight above 0; there would be nothing to learn")
        self.terms = nn.ModuleDict({name: entry.build() for name, entry in self.entries.items()})
        self.bound = False

    def bind(self, student: CompressionModel, teacher: CompressionModel | None = None) -> None:
        """Tell the terms which models they compare. Raises UserError for a tap that does not fit."""
        for term in self.of_kind(Term):
            term.bind(student, teacher)
        self.bound = True

    def weights_at(self, step: int | None) -> list[float]:
        """The weight of each term in the update that follows `step` updates; without a step, warm-ups are over."""
        return [entry.weight_at(step) for entry in self.entries.values()]

    def forward(
        self,
        batch: dict[str, Any],
        output: Any,
        teacher: dict[str, Tensor] | None = None,
        step: int | None = None,
        weights: Tensor | None = None,
    ) -> ObjectiveOutput:
        """The sum for one batch; see `Term.forward`.

        `step` is what warm-ups count; without it they are over. `weights` are those of `weights_at` as a tensor, where
        the sum must not depend on numbers of the CPU.
        """
        chosen: Iterable[float | Tensor] = self.weights_at(step) if weights is None else weights
        weighted, logged = [], {}
        owners: dict[str, str] = dict.fromkeys(RESERVED, "the training step")
        for term in self.of_kind(Term):
            term.see_step(step, replayed=weights is not None)
        values = self._values(batch, output, teacher)
        for name, term, weight in zip(self.entries, self.of_kind(Term), chosen, strict=True):
            value = values[name]
            value, further = value if isinstance(value, tuple) else (value, {})
            weighted.append(weight * value)
            scalars = {term.tag.format(name=name): value} | further
            if isinstance(term, Rate) and term.target is not None:
                found = {"lambda": weight * term.factor, "bpp_average": term.search[0]}
                scalars |= {key: torch.as_tensor(v, device=value.device).float() for key, v in found.items()}
            _claim_names(owners, name, scalars)
            logged |= scalars
        return ObjectiveOutput(reduce(add, weighted), logged)

    def _values(self, batch: dict[str, Any], output: Any, teacher: dict[str, Tensor] | None) -> dict[str, Any]:
        """What each term gives, by name. All that see the same images get the same `Pair`."""
        if getattr(output, "x_hat", None) is not None:
            batch = batch | {"pair": Pair(output.x_hat, batch["image"])}
        seen: dict[float, tuple[dict[str, Any], Any]] = {1.0: (batch, output)}
        values = {}
        # Those of all images first: a share of their features then serves those of a share.
        for name, entry in sorted(self.entries.items(), key=lambda item: -item[1].share):
            share = entry.share if self.training else 1.0
            if share not in seen:
                seen[share] = _drawn(batch, output, share)
            values[name] = self.terms[name](*seen[share], teacher)
        return values

    def updated(self, step: int) -> None:
        """Tell the terms that `step` updates have been made."""
        for entry, term in zip(self.entries.values(), self.of_kind(Term), strict=True):
            term.updated(step >= entry.warmup_steps)

    def skipped(self) -> None:
        """Tell the terms that an update was not taken."""
        for term in self.of_kind(Term):
            term.skipped()

    def weight(self, name: str) -> float:
        """Weight of a term; 0 for one that is not there."""
        return self.entries[name].weight if name in self.entries else 0.0

    def of_kind(self, kind: type[Kind]) -> list[Kind]:
        """The terms of a class."""
        return [term for term in self.terms.values() if isinstance(term, kind)]

    def reads_only(self, taps: Collection[str]) -> bool:
        """Whether all terms are rates or compare taps out of these: no picture is read."""
        return all(
            isinstance(term, Rate | TapTerm) and not term.needs_picture and set(term.student_taps) <= set(taps)
            for term in self.of_kind(Term)
        )

    @property
    def adversary(self) -> Adversarial | None:
        """The term whose discriminator is the second player."""
        found = self.of_kind(Adversarial)
        if len(found) > 1:
            raise UserError("objective: two adversarial terms; there is one discriminator at a time")
        return found[0] if found else None

    @property
    def adversary_weight(self) -> float:
        """The weight of that term; 0 without one."""
        return next((self.weight(name) for name, term in self.terms.items() if term is self.adversary), 0.0)

    @property
    def student_taps(self) -> list[str]:
        """Taps that the terms read from the output of the model that is trained."""
        return list(dict.fromkeys(tap for term in self.of_kind(Term) for tap in term.student_taps))

    @property
    def teacher_taps(self) -> list[str]:
        """Taps that the terms read from the teacher; none if there is nothing to distil."""
        return list(dict.fromkeys(tap for term in self.of_kind(Term) for tap in term.teacher_taps))


def read_objective(terms: Mapping[str, Any]) -> dict[str, Entry]:
    """The terms of a weight above 0, by name; nothing is built. Raises UserError for what cannot be."""
    if not isinstance(terms, Mapping):
        raise UserError(f"objective: {terms!r} is no mapping of names to weights, such as {{rate: 0.8, mse: 2.0}}")
    entries = {name: _read_entry(name, value) for name, value in terms.items()}
    return {name: entry for name, entry in entries.items() if entry is not None and entry.weight}


def _claim_names(owners: dict[str, str], name: str, scalars: Iterable[str]) -> None:
    """Note what a term logs. Raises UserError for a name that is taken: one of the two would not be seen."""
    for scalar in scalars:
        if scalar in owners:
            raise UserError(
                f"objective.{name}: its scalar {scalar!r} has the name of one of {owners[scalar]}; rename the term, or "
                "give its class a `tag` or `label` of its own"
            )
        owners[scalar] = f"objective.{name}"


def share_of(batch: int, share: float) -> int:
    """How many of a batch's images a term of this share sees: at least one."""
    return max(1, round(share * batch))


def _drawn(batch: dict[str, Any], output: Any, share: float) -> tuple[dict[str, Any], Any]:
    """Images and pictures of a share of the batch."""
    images = batch["image"]
    # A random order, drawn where the images are: a draw on the CPU would have to be copied to a GPU.
    rows = torch.rand(len(images), device=images.device).argsort()[: share_of(len(images), share)]
    pair = batch["pair"].rows(rows)
    return {"image": pair.x, "pair": pair}, output._replace(x_hat=pair.x_hat)


class Described(NamedTuple):
    """One line of a config's objective and what is known of its term."""

    entry: Entry
    description: Description


def describe_objective(settings: Mapping[str, Any]) -> list[Described]:
    """The terms of a config's `model.init_args`, those of weight 0 left out; nothing is built.

    Configs of before there was an `objective` are understood as well.
    """
    return [Described(entry, entry.describe()) for entry in read_objective(objective_settings(settings)).values()]


def objective_weights(settings: Mapping[str, Any]) -> dict[str, float]:
    """The weight of each term that a config's `model.init_args` names, those of weight 0 included."""
    terms = objective_settings(settings)
    return {
        name: (term.get("weight", 1.0) if isinstance(term, Mapping) else term) or 0.0 for name, term in terms.items()
    }


def rate_target(settings: Mapping[str, Any]) -> float | None:
    """The rate in bits per pixel that a config's `model.init_args` orders; None for a fixed lambda."""
    rate = objective_settings(settings).get("rate")
    return (rate.get("init_args") or rate).get("target") if isinstance(rate, Mapping) else None


def objective_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`objective` of a config's `model.init_args`, or what the `loss` of an older one says."""
    if "objective" in settings or "loss" not in settings:
        return dict(settings.get("objective") or {})
    loss, optimization = settings["loss"] or {}, settings.get("optimization") or {}
    backbones = {
        "lpips": loss.get("lpips_backbone"),
        "edge_dists": loss.get("dists_backbone"),
        "semantic": loss.get("semantic_backbone"),
        "adversarial": optimization.get("discriminator"),
    }
    terms = {name: {"weight": loss[name]} for name in SHIPPED if name in loss}
    for name in terms.keys() & backbones.keys():
        terms[name]["backbone"] = backbones[name] or "lite0"
    betas = {"L_enc": settings.get("beta1"), "L_dec": settings.get("beta2")}
    terms |= {name: {"weight": weight} for name, weight in betas.items() if weight is not None}
    return terms | ({"mse": {"weight": loss["beta"]}} if "beta" in loss else {})


def _read_entry(name: str, value: Any) -> Entry | None:
    if value is None or value == 0:
        return None
    given = dict(value) if isinstance(value, Mapping) else {"weight": value}
    weight, warmup_steps, path = given.pop("weight", 1.0), given.pop("warmup_steps", 0), given.pop("class_path", None)
    share = given.pop("share", 1.0)
    if weight is None or weight == 0:
        return None
    if path is None and name not in SHIPPED:
        raise UserError(
            f"objective: no term {name!r}{did_you_mean(name, SHIPPED)}; the shipped ones are {', '.join(SHIPPED)}, "
            f"any other needs a class_path (to change its weight alone, set objective.{name}.weight)"
        )
    if str(path).startswith("aeic_lightning.losses."):  # where a shipped term once had a file of its own
        path = f"aeic_lightning.losses.{str(path).rpartition('.')[2]}"
    kind, arguments = (find_class(path, f"objective.{name}", Term), {}) if path else SHIPPED[name]
    arguments = arguments | (given.pop("init_args", None) or {}) | given
    for key, number in (("weight", weight), ("warmup_steps", warmup_steps), ("share", share)):
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
            raise UserError(f"objective.{name}: {key} must be a number, 0 or more, not {number!r}")
    if not 0 < share <= 1:
        raise UserError(f"objective.{name}: share is above 0 and at most 1, not {share!r}")
    if share < 1 and not kind.of_single_images:
        raise UserError(f"objective.{name}: {kind.__name__} needs the whole batch; leave share out")
    parameters = arguments_of(kind)
    for argument in arguments:
        if argument not in parameters:
            known = [*parameters, "weight", "warmup_steps", "share"]
            hint = did_you_mean(argument, known) or f"; it takes {', '.join(known)}"
            raise UserError(f"objective.{name}: {kind.__name__} does not take {argument!r}{hint}")
    return Entry(name, float(weight), int(warmup_steps), float(share), kind, arguments)
