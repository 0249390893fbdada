"""The frozen base of the decoder: a Stable Diffusion U-Net and a VAE decoder, from local files.

SD-Turbo's U-Net (https://huggingface.co/stabilityai/sd-turbo) is read from a folder in the format of diffusers, and
left without its time embedding and its cross-attention; the half-width VAE decoder from the checkpoint that AdcSR
released (https://github.com/Guaishou74851/AdcSR). Nothing is downloaded and nothing but tensors is unpickled.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from aeic_lightning.errors import UserError
from aeic_lightning.files import write_whole
from aeic_lightning.models.decoder.config import UNetConfig

WEIGHTS_FOLDER = "AEIC_WEIGHTS"  # environment: a folder in which base weights are looked for


def locate(name: str, what: str) -> Path:
    """Path of `name`: a path; or its last part in the folder AEIC_WEIGHTS; or in the Hugging Face cache, as
    OWNER/REPOSITORY (the folder of its snapshot) or OWNER/REPOSITORY/path/of/a/file.

    Raises UserError with the command that gets it.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    folder = os.environ.get(WEIGHTS_FOLDER)
    if folder and (Path(folder) / path.name).exists():
        return Path(folder) / path.name
    hint = "correct the path"
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)+", name):
        from huggingface_hub import try_to_load_from_cache

        owner, repository, *file = name.split("/")
        repository, file = f"{owner}/{repository}", "/".join(file)
        cached = try_to_load_from_cache(repository, file or "unet/config.json")
        if isinstance(cached, str):
            return Path(cached) if file else Path(cached).parent.parent
        files = file or "unet/config.json unet/diffusion_pytorch_model.safetensors"
        hint = f"run `hf download {repository} {files}`, correct the path"
    raise UserError(f"no {what} at {name}: {hint}, or set {WEIGHTS_FOLDER} to the folder that holds {path.name}")


# ---------------------------------------------------------------------- the U-Net


def unet_files(name: str, config: UNetConfig) -> list[Path]:
    """The files that hold a U-Net's tensors: safetensors, whole or in shards, fp16 only if there is nothing else.

    `name` is a folder that has `unet/`, or that folder itself, with `config.json` beside the weights. Raises UserError
    when it is missing or has other sizes.
    """
    folder = locate(name, "U-Net (a diffusers folder)")
    if (folder / "unet").is_dir():
        folder = folder / "unet"
    _check_sizes(folder, config)
    return _weight_files(folder)


def read_unet(name: str, config: UNetConfig) -> dict[str, Tensor]:
    """The U-Net's tensors, float32, by diffusers' names, without time embedding and cross-attention; see `unet_files`.

    Raises UserError when it is missing, damaged or has other sizes.
    """
    state = {}
    for file in unet_files(name, config):
        try:
            with safe_open(file, framework="pt") as tensors:
                state |= {key: tensors.get_tensor(key).float() for key in tensors.keys() if _is_used(key)}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read the U-Net from {file}: {error}; fetch it again") from error
    return state


def _is_used(name: str) -> bool:
    """Whether the one-step denoiser has this tensor: `norm2` goes with the cross-attention, not in resnets."""
    dropped = name.startswith(("time_embedding.", "class_embedding.")) or ".time_emb_proj." in name
    return not dropped and ".attn2." not in name and not re.search(r"\.transformer_blocks\.\d+\.norm2\.", name)


def _sizes(config: UNetConfig) -> dict[str, Any]:
    """The sizes of a U-Net by diffusers' names, of which `attention_head_dim` holds the number of heads."""
    return {
        "block_out_channels": config.widths,
        "attention_head_dim": config.heads,
        "layers_per_block": config.layers,
        "norm_num_groups": config.groups,
        "use_linear_projection": True,
    }


def _check_sizes(folder: Path, config: UNetConfig) -> None:
    try:
        theirs = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"no U-Net in {folder}: its config.json cannot be read; name a diffusers folder") from error
    for key, value in _sizes(config).items():
        if theirs.get(key) != value:
            raise UserError(
                f"the U-Net in {folder} has {key} {theirs.get(key)}, the config asks for {value}; "
                "name another folder or correct decoder.unet"
            )


def _weight_files(folder: Path) -> list[Path]:
    stem = "diffusion_pytorch_model"
    for whole, index in (
        (f"{stem}.safetensors", f"{stem}.safetensors.index.json"),
        (f"{stem}.fp16.safetensors", f"{stem}.safetensors.index.fp16.json"),
    ):
        if (folder / whole).is_file():
            return [folder / whole]
        if (folder / index).is_file():
            shards = sorted(set(json.loads((folder / index).read_text())["weight_map"].values()))
            missing = [shard for shard in shards if not (folder / shard).is_file()]
            if missing:
                raise UserError(f"the U-Net in {folder} lacks {missing[0]}; fetch it again")
            return [folder / shard for shard in shards]
    raise UserError(f"no {stem}.safetensors in {folder}; fetch the folder with its safetensors")


# ---------------------------------------------------------------------- the VAE decoder


class _Inert:
    """Stands in for the classes of Lightning that a checkpoint mentions; holds nothing and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def read_vae_decoder(name: str) -> dict[str, Tensor]:
    """A VAE decoder's tensors, float32, by the names of diffusers' `Decoder`.

    `name` is a safetensors or a torch file: a state dict, or a checkpoint with one as `state_dict`; names may have the
    prefix `decoder.`, and then all others are passed over. Raises UserError when it is missing or something else.
    """
    path = locate(name, "VAE decoder")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as tensors:
                state = {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
        else:
            state = _load_checkpoint(path)
    except Exception as error:  # torch raises many kinds for a damaged or a foreign file
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(f"cannot read a VAE decoder from {path} ({reason}); fetch it again") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    prefix = "decoder."
    if isinstance(state, dict) and any(str(key).startswith(prefix) for key in state):
        state = _below(state, prefix)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no VAE decoder: no state dict, plain or with the prefix {prefix!r}")
    return {key: value.float() for key, value in state.items()}


def _load_checkpoint(path: Path) -> Any:
    # Lightning keys the state of its callbacks by class. Such a name becomes an inert stand-in; any other object than
    # tensors and plain values is refused by torch.
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # a file older than torch 1.6, which is no archive
        unknown = []
    lightnings = ("pytorch_lightning.", "lightning.")
    stand_ins: list[Any] = [(_Inert, known) for known in unknown if known.startswith(lightnings)]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(path, map_location="cpu", weights_only=True)


# ---------------------------------------------------------------------- both


def split_decoder(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A whole decoder's tensors as a base: those of its U-Net, conv_in and conv_out included, and of its VAE decoder.

    LoRA's own tensors are left out; the layers below them keep their names.
    """
    plain = {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}
    unet = {name.removeprefix("trunk."): tensor for name, tensor in _below(plain, "denoiser.").items()}
    return unet, _below(plain, "vae.")


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def write_base(folder: Path, config: UNetConfig, state: dict[str, Tensor]) -> None:
    """Write a whole decoder (`split_decoder`) as files that `read_unet` and `read_vae_decoder` read.

    They are `unet/config.json`, `unet/diffusion_pytorch_model.safetensors` and `vae.safetensors`, float32.
    """
    unet, vae = split_decoder(state)
    (folder / "unet").mkdir(parents=True, exist_ok=True)
    write_whole(folder / "unet/config.json", json.dumps(_sizes(config), indent=1) + "\n")
    for name, tensors in (("unet/diffusion_pytorch_model", unet), ("vae", vae)):
        packed = {key: tensor.detach().float().cpu().contiguous() for key, tensor in tensors.items()}
        write_whole(folder / f"{name}.safetensors", save(packed, metadata={"format": "pt"}))


def assign(module: nn.Module, state: dict[str, Tensor], what: str, names: dict[str, str] | None = None) -> None:
    """Make `state` the parameters of `module`, without a copy; `names` maps names in the state to the module's own.

    Raises UserError naming the first tensor that is missing, superfluous or of another shape.
    """
    own = module.state_dict()
    names = names or {name: name for name in own}
    for name, target in names.items():
        if name not in state:
            raise UserError(f"decoder.pretrained: the {what} has no {name}; it is incomplete or another network")
        if state[name].shape != own[target].shape:
            raise UserError(
                f"decoder.pretrained: the {what} holds {name} as {list(state[name].shape)}, "
                f"not {list(own[target].shape)}; name another one or correct the sizes in the config"
            )
    extra = next((name for name in state if name not in names), None)
    if extra is not None:
        raise UserError(f"decoder.pretrained: the {what} holds {extra}, which the decoder has not; it is another one")
    module.load_state_dict({names[name]: tensor for name, tensor in state.items()}, strict=False, assign=True)


def base_digests(unet: dict[str, Tensor], vae: dict[str, Tensor]) -> dict[str, str]:
    """What tells one base from another: the `weights_digest` of its two parts."""
    return {"unet": weights_digest(unet), "vae": weights_digest(vae)}


def weights_digest(state: dict[str, Tensor]) -> str:
    """16 hexadecimal digits that tell one set of weights from another: a hash of names, shapes and up to 64 values of
    each tensor. Values count at half precision, so that a float16 edition of the same weights is the same.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].detach().flatten()
        digest.update(f"{name} {tuple(state[name].shape)}".encode())
        digest.update(values[:: max(1, len(values) // 64)][:64].half().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
