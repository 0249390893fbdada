"""What a run says of itself from its config: labels, costs of the sender, what the loss saw, settings.

`fit` writes it into `run.json` when it begins, so that reading a run parses JSON (`study.results`). For older runs it
is derived from the config when they are read.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from aeic_lightning.errors import UserError
from aeic_lightning.losses.objective import describe_objective, objective_settings, objective_weights, rate_target
from aeic_lightning.models.codec.latent_codec import LatentCodec
from aeic_lightning.models.parts import encoder_labels
from aeic_lightning.study.complexity import experiment_configs, sender_costs, sizes_alone
from aeic_lightning.study.experiment import experiment_settings

Label = int | float | str


def describe_run(config: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """Labels, costs, what the loss saw, and the settings of the experiment, as plain values.

    Args:
        config: the run's `config.yaml`.
        record: its `run.json`: the seed, what a resume changed, and the digests of the user's own classes.
    """
    config = config | {"model": {"init_args": {}} | config["model"]}
    return {
        "labels": run_labels(config, record.get("seed")),
        "costs": encoder_costs(config),
        "loss_saw": seen_in_training(config),
        "settings": experiment_settings(config, record),
    }


def run_labels(config: dict[str, Any], seed: int | None) -> dict[str, Label]:
    """What a run's config says of it; `model.init_args.labels`, which an experimenter wrote, win."""
    model = config["model"]
    settings = model["init_args"]
    codec, weights = settings.get("codec") or {}, objective_weights(settings)
    labels: dict[str, Label] = {"role": model["class_path"].rsplit(".", 1)[-1].removesuffix("System").lower()}
    labels |= encoder_labels(codec)
    called = {"lambda": "rate", "beta1": "L_enc", "beta2": "L_dec"}
    labels |= {label: weights[term] for label, term in called.items() if term in weights}
    target = rate_target(settings)
    if target is not None:  # lambda is then what the run has found
        labels["target"] = target
        labels.pop("lambda", None)
    if seed is not None:
        labels["seed"] = seed
    return labels | _loss_label(settings) | (settings.get("labels") or {})


def _loss_label(settings: dict[str, Any]) -> dict[str, Label]:
    """The other terms of the loss: stages that learn from different terms are different curves."""
    labelled = ("rate", "L_enc", "L_dec")  # lambda, beta1, beta2
    weights = {name: weight for name, weight in objective_weights(settings).items() if name not in labelled}
    words = [f"{name} {weight:g}{_form(settings, name)}" for name, weight in weights.items() if weight]
    return {"loss": ", ".join(words)} if words else {}


def _form(settings: dict[str, Any], name: str) -> str:
    """Which form of a term it is, where the config says so: terms of two forms are two losses."""
    term = objective_settings(settings).get(name)
    form = ({**(term.get("init_args") or {}), **term}).get("form") if isinstance(term, Mapping) else None
    return f" ({form})" if form else ""


def seen_in_training(config: dict[str, Any]) -> list[dict[str, str | None]]:
    """The metric and the network of each term of the loss, where it has one (`results.with_part_in_training`)."""
    terms = [term.description for term in describe_objective(config["model"]["init_args"])]
    return [{"metric": t.metric, "backbone": t.backbone} for t in terms if t.metric or t.backbone]


def encoder_costs(config: dict[str, Any]) -> dict[str, dict[str, float]] | None:
    """Parameters and MACs per pixel of g_a, and of all that the sender runs.

    None for another kind of model, and for an encoder that cannot be imported here, whose results can still be read.
    """
    settings = config["model"]["init_args"]
    if not {"codec", "decoder"} <= set(settings):
        return None
    return _costs(json.dumps({"model": {"init_args": {part: settings[part] for part in ("codec", "decoder")}}}))


@lru_cache
def _costs(config: str) -> dict[str, dict[str, float]] | None:
    codec, _ = experiment_configs(json.loads(config), "config.yaml")
    try:
        codec.find_parts()
    except UserError:
        return None
    with sizes_alone(), torch.random.fork_rng(devices=[]):
        costs = sender_costs(LatentCodec(codec))
    return {
        "encoder_macs_per_pixel": {part: costs[part].macs_per_pixel for part in ("g_a", "encode")},
        "encoder_parameters": {part: costs[part].parameters for part in ("g_a", "encode")},
    }
