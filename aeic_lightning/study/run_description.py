"""What a run says of itself from its config: labels, costs of the sender, what the loss saw, settings.

`fit` writes it into `run.json` when it begins, so that reading a run parses JSON (`study.results`). For older runs it
is derived from the config when they are read.
"""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import PurePath
from typing import Any

import torch

from aeic_lightning.config.layers import flat
from aeic_lightning.errors import UserError
from aeic_lightning.losses.objective import describe_objective, objective_settings, objective_weights, rate_target
from aeic_lightning.models.codec.latent_codec import LatentCodec
from aeic_lightning.models.encoders.labels import encoder_labels
from aeic_lightning.study.complexity import experiment_configs, sender_costs


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


def run_labels(config: dict[str, Any], seed: int | None) -> dict[str, int | float | str]:
    """What a run's config says of it; `model.init_args.labels`, which an experimenter wrote, win."""
    model = config["model"]
    settings = model["init_args"]
    codec, weights = settings.get("codec") or {}, objective_weights(settings)
    labels: dict[str, int | float | str] = {
        "role": model["class_path"].rsplit(".", 1)[-1].removesuffix("System").lower()
    }
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


def _loss_label(settings: dict[str, Any]) -> dict[str, int | float | str]:
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
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        costs = sender_costs(LatentCodec(codec))
    return {
        "encoder_macs_per_pixel": {part: costs[part].macs_per_pixel for part in ("g_a", "encode")},
        "encoder_parameters": {part: costs[part].parameters for part in ("g_a", "encode")},
    }


# ---------------------------------------------------------------------- what makes two runs the same experiment


RATE = re.compile(r"(objective|loss)\.rate(\.weight|\.target)?|optimization\.level")
SEED = re.compile(r"(.*\.)?seed(_everything)?")
# What changes how a run is shown, stored or fed, but not what it computes.
ASIDE = re.compile(
    r"labels\..*|write_streams|teacher_cache|ckpt_path|weights_only|data\.(num_workers|pin_memory|prefetch\w*|persistent\w*)"
    r"|trainer\.(logger|default_root_dir|enable_\w+|log_every_n_steps|num_sanity_val_steps|profiler|fast_dev_run)(\..*)?"
    r"|trainer\.(val_check_interval|check_val_every_n_epoch|limit_\w+_batches|barebones)"
)
CALLBACK = re.compile(r"(trainer\.callbacks\.\d+)\.(.*)")
FROM = re.compile(r"(init_from|receiver_from|teacher)(\.path)?")
OVERRIDDEN = ("trainer.max_steps", "trainer.max_epochs")
"""Limits of a run that was extended: the last one counts."""


def experiment_settings(config: dict[str, Any], record: dict[str, Any] | None = None) -> dict[str, str]:
    """The settings of a run that tell experiments apart: its composed config, but for the seed, paths and the rate.

    Runs that agree in these may be pooled as seeds of one curve. Runs that do not are different experiments, whatever
    their labels say (`study.group`). A setting that has no value is left out.

    Args:
        config: the run's `config.yaml`.
        record: its `run.json`: what a resume changed, and the digests of the user's own classes and of data folders.
    """
    values = flat(config, lists=True)
    ours = _own_callbacks(values)
    found = {
        _short(key): _text(key, value) for key, value in values.items() if _counts(key, ours) and value is not None
    }
    record = record or {}
    found |= {f"source of {module}": digest[:12] for module, digest in (record.get("sources") or {}).items()}
    found |= {f"files of {_short(key)}": digest[:12] for key, digest in (record.get("data_files") or {}).items()}
    for resumed in record.get("resumed") or []:
        for key, (_, now) in (resumed.get("changed") or {}).items():
            if not _counts(key, ours):
                continue
            name, text = _short(key), _text(key, now)
            found[name] = text if key in OVERRIDDEN else f"{found.get(name)}, from step {resumed.get('step')} on {text}"
    return found


def _own_callbacks(values: dict[str, Any]) -> set[str]:
    """Callbacks that are not this project's or Lightning's, and may do anything."""
    paths = {
        match[1]: value
        for key, value in values.items()
        if (match := CALLBACK.fullmatch(key)) and match[2] == "class_path"
    }
    return {place for place, path in paths.items() if not str(path).startswith(("callbacks.", "lightning."))}


def _counts(key: str, callbacks: set[str]) -> bool:
    if match := CALLBACK.fullmatch(key):
        return match[1] in callbacks
    name = _short(key)
    return not (RATE.fullmatch(name) or SEED.fullmatch(name) or ASIDE.fullmatch(name))


def _short(key: str) -> str:
    """`model.init_args.objective.L_enc.init_args.taps` -> `objective.L_enc.taps`."""
    return key.replace(".init_args", "").removeprefix("model.")


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or "/" not in value:
        return str(value)
    # Where a file lies is none of an experiment; that there is one is, and so is the name of a data set.
    return "a file" if FROM.fullmatch(_short(key)) or value.endswith(".ckpt") else PurePath(value).name
