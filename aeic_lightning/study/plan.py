"""What an experiment needs, before it is run: parameters, memory, and missing weights.

Everything is built on the meta device, so that a plan takes seconds and no memory, whatever the model's size.
"""

import copy
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from aeic_lightning.checkpoints.checkpoint import from_dict, installed_kinds
from aeic_lightning.config.lightning_cli import OPTIONS, user_error
from aeic_lightning.errors import UserError
from aeic_lightning.extras import require
from aeic_lightning.files import locate
from aeic_lightning.losses.objective import Described, describe_objective, share_of
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.backbone_files import require_backbone
from aeic_lightning.models.decoder import stable_diffusion
from aeic_lightning.own_classes import arguments_of, find_class
from aeic_lightning.study import binding
from aeic_lightning.study.complexity import experiment_configs
from aeic_lightning.systems import OptimizationConfig
from aeic_lightning.systems.sharded import base_blocks
from aeic_lightning.systems.start import StartFrom

GIGABYTE = 1e9


@dataclass
class Part:
    """Parameters of one part of a run."""

    name: str
    trained: int = 0
    frozen: int = 0


@dataclass
class Plan:
    """Bytes are of one device, for one batch."""

    parts: list[Part] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    activations: dict[str, float] = field(default_factory=dict)
    assumptions: list[str] = field(default_factory=list)
    spread: list[int] = field(default_factory=list)  # numbers in each block of the base that the processes share
    processes: int = 1

    @property
    def memory(self) -> dict[str, float]:
        """Bytes by purpose."""
        trained = sum(part.trained for part in self.parts)
        frozen = sum(part.frozen for part in self.parts)
        fixed = {"weights": 4.0 * (trained + frozen), "gradients": 4.0 * trained, "AdamW": 8.0 * trained}
        if self.spread:
            fixed["weights"] -= 4.0 * (sum(self.spread) - sum(self.spread) / self.processes)
            fixed["gathered block of the base"] = 4.0 * max(self.spread)
        return fixed | {f"activations, {name}": size for name, size in self.activations.items()}


def make_plan(config: dict[str, Any], file: Any) -> Plan:
    """Plan of a resolved experiment file. Raises UserError for settings that cannot be."""
    check_settings(config)
    settings = config["model"]["init_args"]
    terms = describe_objective(settings)
    data = (config.get("data") or {}).get("init_args") or {}
    path = config["model"]["class_path"]
    kind = next((kind for kind in installed_kinds() if path.startswith(f"{kind.package}.")), None)
    if kind:
        plan = Plan()
        crop, batch = data.get("crop_size") or _default(config["data"], "crop_size"), data.get("batch_size", 8)
        plan.assumptions.append(f"batches of {batch} images of {crop} x {crop} on each device; every number 4 bytes")
        kind.module("plan").fill(plan, config, file, terms, torch.empty(batch, 3, crop, crop, device="meta"))
        return plan
    codec_config, decoder_config = experiment_configs(config, file)
    try:
        optimization = from_dict(OptimizationConfig, settings.get("optimization") or {})
        optimization.check()
    except TypeError as error:
        raise UserError(f"{file}: {error}; --print_config lists the settings") from error
    crop, batch = data.get("crop_size", 256), data.get("batch_size", 8)
    low = str((config.get("trainer") or {}).get("precision", "32")).startswith(("bf16", "16"))
    low |= optimization.bfloat16 is True

    plan = Plan()
    with torch.device("meta"):
        model = AEIC(codec_config, decoder_config)
    plan.parts += [
        part("codec", model.codec),
        part("denoiser", model.decoder.denoiser),
        part("VAE decoder", model.decoder.vae),
    ]
    if optimization.shard_base and decoder_config.pretrained:
        plan.processes = _processes(config.get("trainer") or {})
        plan.spread = [part("block", block).frozen for block in base_blocks(model.decoder)]
        plan.assumptions.append(f"the base of the decoder spread over {plan.processes} processes, whole in validation")
    x_hat = _model_activations(plan, model, torch.empty(batch, 3, crop, crop, device="meta"), low)
    add_terms(plan, terms, x_hat)
    _add_teacher(plan, config, model)
    find_missing(plan, config, decoder_config, terms)
    plan.assumptions += [
        f"batches of {batch} crops of {crop} x {crop} on each device; every number 4 bytes"
        + (", the decoder's activations 2" if low else ""),
        "activations are what autograd keeps for the backward pass"
        + (", with gradient checkpointing in the decoder" if decoder_config.gradient_checkpointing else ""),
        "not counted: buffers of convolutions, fragmentation, the CUDA context (about 1 GB), validation images",
    ]
    return plan


def _processes(trainer: dict[str, Any]) -> int:
    """Of a run, as far as its config says."""
    devices = trainer.get("devices") or 1
    devices = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 1
    return devices * int(trainer.get("num_nodes") or 1)


def _default(data: dict[str, Any], argument: str) -> Any:
    """Default of an argument of the data module that a config names."""
    return arguments_of(find_class(data["class_path"], "data"))[argument].default


def check_settings(config: dict[str, Any]) -> None:
    """Raise UserError for settings that `fit` would not take; nothing is built."""

    class Parser(LightningCLI):
        def instantiate_classes(self) -> None: ...

        def _run_subcommand(self, subcommand: str) -> None: ...

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LightningCLI's args parameter.*")
            Parser(args={"subcommand": "fit", "fit": copy.deepcopy(config) | {"seed_everything": False}}, **OPTIONS)
    except ArgumentError as error:
        raise user_error(error) from error


def print_plan(plan: Plan) -> int:
    """Print the plan; 0 when nothing is missing, else 2."""
    print(f"{'part':<22} {'trained':>14} {'frozen':>14}")
    for row in [*plan.parts, Part("sum", *(sum(getattr(p, n) for p in plan.parts) for n in ("trained", "frozen")))]:
        print(f"{row.name:<22} {row.trained:>14,} {row.frozen:>14,}")
    print("\nmemory, estimated")
    for name, size in plan.memory.items():
        print(f"  {name:<38} {size / GIGABYTE:>8.2f} GB")
    print(f"  {'sum':<38} {sum(plan.memory.values()) / GIGABYTE:>8.2f} GB")
    for line in plan.assumptions:
        print(f"  ({line})")
    print("\nmissing" if plan.missing else "\nnothing is missing")
    for line in plan.missing:
        print(f"  - {line}")
    return 2 if plan.missing else 0


def part(name: str, module: nn.Module) -> Part:
    """Count a module's parameters."""
    count = Part(name)
    for p in module.parameters():
        if p.requires_grad:
            count.trained += p.numel()
        else:
            count.frozen += p.numel()
    return count


# ---------------------------------------------------------------------- activations


class Kept:
    """Bytes of the tensors that autograd keeps, each storage once, parameters not at all."""

    def __init__(self, *modules: nn.Module) -> None:
        self.seen = {_storage(p) for module in modules for p in module.parameters()}
        self.size = 0

    def add(self, tensor: Tensor) -> Tensor:
        if _storage(tensor) not in self.seen:
            self.seen.add(_storage(tensor))
            self.size += tensor.untyped_storage().nbytes()
        return tensor

    @contextmanager
    def counting(self):
        with _FusedAttention(), torch.autograd.graph.saved_tensors_hooks(self.add, lambda tensor: tensor):
            yield self


class _FusedAttention(TorchFunctionMode):
    """Attention keeps what the fused kernels keep. The meta device would run, and keep, the matrix of all pairs."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            return _Attention.apply(*args[:3])
        return function(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _model_activations(plan: Plan, model: AEIC, x: Tensor, low: bool) -> Tensor:
    """Record what the codec and the decoder keep; returns x_hat."""
    model.train()
    kept = Kept(model)
    with kept.counting():
        codec = model.codec(x)
    plan.activations["codec"] = float(kept.size)
    before = kept.size
    largest = 0

    def checkpointed(function: Callable[..., Any], *args: Any) -> Any:
        # Of a checkpointed module its inputs are kept, and in the backward pass all of one module at a time.
        nonlocal largest
        for tensor in args:
            if isinstance(tensor, Tensor):
                kept.add(tensor)
        size, seen = kept.size, set(kept.seen)
        out = function(*args)
        largest = max(largest, kept.size - size)
        kept.size, kept.seen = size, seen
        return out

    decoder = model.decoder
    if decoder.config.gradient_checkpointing:
        decoder.denoiser.trunk.recompute_with(checkpointed)
        decoder.vae.recompute = checkpointed
    with kept.counting():
        x_hat = decoder(codec.l_T, codec.l_res).x_hat
    plan.activations["decoder"] = (kept.size - before + largest) * (0.5 if low else 1.0)
    return x_hat


def add_terms(plan: Plan, terms: list[Described], x_hat: Tensor) -> None:
    """The frozen networks of the objective, and what else its terms train."""
    batch, _, height, width = x_hat.shape
    for term in terms:
        description = term.description
        if description.backbone:
            network = _backbone(description.backbone).requires_grad_(False)
            images, rows, columns = description.sees(share_of(batch, term.entry.share), height, width)
            kept = Kept(network)
            with kept.counting():
                network(torch.empty(images, 3, rows, columns, device="meta", requires_grad=True))
            name = f"{term.entry.name} ({description.backbone})"
            plan.parts.append(part(name, network))
            plan.activations[name] = float(kept.size)
        if description.trained:
            plan.parts.append(Part(f"{term.entry.name}'s own", trained=description.trained))


def _backbone(name: str) -> nn.Module:
    with torch.device("meta"):
        if name == "lite0":
            return timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
        if name in ("alex", "vgg", "hed"):  # HED's trunk is VGG16's
            build = torchvision.models.alexnet if name == "alex" else torchvision.models.vgg16
            return build(weights=None).features
        if name == "clip":
            require("CLIP", "transformers")
            from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

            return CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=512)).eval()
        if name == "dinov3":
            return timm.create_model("vit_base_patch16_dinov3", pretrained=False, num_classes=0).eval()
    raise UserError(f"no backbone {name!r}; see the settings of the loss in --print_config")


def _add_teacher(plan: Plan, config: dict[str, Any], student: AEIC) -> None:
    """The teacher of a distillation, and the projections."""
    settings = config["model"]["init_args"]
    if settings.get("teacher_codec"):  # trained beside the student
        teacher = binding.online_teacher(settings, student)
        plan.parts += [part("teacher's codec", teacher.codec), part("teacher's decoder", teacher.decoder)]
        plan.assumptions.append("the teacher's activations, about as many as the student's, are not counted")
    elif path := settings.get("teacher"):
        if locate(path).exists():
            teacher = binding.teacher_of(path)
            _count_frozen_teacher(plan, settings, student, teacher)
        else:
            teacher = None
            plan.assumptions.append(f"the teacher {path} is not there, and so not counted")
    else:
        teacher = None
    for name, term in binding.bind(config, student, teacher).items():
        plan.parts.append(part(f"{name}'s projections", term))


def _count_frozen_teacher(plan: Plan, settings: dict[str, Any], student: AEIC, teacher: AEIC) -> None:
    teacher.requires_grad_(False)
    plan.parts.append(part("teacher's codec", teacher.codec))
    if settings.get("share_base", True) and teacher.decoder.config.pretrained and student.decoder.config.pretrained:
        own = sum(t.numel() for name, t in teacher.decoder.state_dict().items() if name.startswith("denoiser."))
        plan.parts.append(Part("teacher's adapter", frozen=own))
    else:
        plan.parts.append(part("teacher's decoder", teacher.decoder))


# ---------------------------------------------------------------------- what is missing


def find_missing(plan: Plan, config: dict, decoder: Any, terms: list[Described]) -> None:
    """List the files that are not there; `decoder` is AEIC's config of it, or None."""

    def need(check, *args: Any) -> None:
        try:
            check(*args)
        except UserError as error:
            if str(error) not in plan.missing:
                plan.missing.append(str(error))

    settings = config["model"]["init_args"]
    if decoder and decoder.pretrained:
        need(stable_diffusion.unet_files, decoder.pretrained.unet, decoder.unet)
        need(stable_diffusion.locate, decoder.pretrained.vae, "VAE decoder")
    for term in terms:
        need(term.description.check_files)
    for name in _callback_networks(config):
        need(require_backbone, name)
    for key in ("init_from", "receiver_from", "teacher"):
        start = settings.get(key)
        # The teacher of a classifier is a mapping of its own, which its plan looks at.
        if start and not (key == "teacher" and isinstance(start, Mapping)):
            need(_checkpoint_file, key, StartFrom.of(start, key).path)
    data = (config.get("data") or {}).get("init_args") or {}
    for key in ("train_dir", "val_dir", "test_dir"):
        if data.get(key) and not Path(data[key]).expanduser().is_dir():
            plan.missing.append(f"data.{key}: no folder {data[key]}; put the images there or name another one")


def _checkpoint_file(key: str, path: str) -> None:
    if not locate(path).exists():
        raise UserError(f"{key}: no file {path}; train that stage first (`fit`), or `import-released` one")


def _callback_networks(config: dict) -> list[str]:
    """Backbones of the metrics that callbacks compute."""
    names: list[str] = []
    for callback in (config.get("trainer") or {}).get("callbacks") or []:
        arguments = callback.get("init_args") or {}
        for key in ("backbone", "lpips", "dists"):
            value = arguments.get(key) or []
            names += [value] if isinstance(value, str) else value
    return names
