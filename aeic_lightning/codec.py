"""The codec as a Python object: an image in, bytes out, and back.

>>> from PIL import Image
>>> from aeic_lightning import Codec
>>> codec = Codec.from_pretrained("small-student")
>>> data = codec.compress(Image.open("photo.jpg"), bpp=0.06)
>>> codec.decompress(data).save("photo.png")
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from PIL import Image
from torch import Tensor

from aeic_lightning import __version__
from aeic_lightning.bitstream.stream import Bitstream, in_passes, reconstruct, reconstruct_batch
from aeic_lightning.checkpoints.checkpoint import load_model
from aeic_lightning.checkpoints.weights import WEIGHTS, read_config, write_weights
from aeic_lightning.errors import UserError
from aeic_lightning.extras import require
from aeic_lightning.files import CONFIG, locate, missing, write_whole
from aeic_lightning.images import from_uint8, pixels_of
from aeic_lightning.models.aeic import REALISTIC
from aeic_lightning.models.base import CompressionModel
from aeic_lightning.output import counted
from aeic_lightning.own_classes import SOURCES, copy_sources, own_sources
from aeic_lightning.torch_settings import check_device

if TYPE_CHECKING:
    from aeic_lightning.bitstream.refine import Refinement

ImageLike = Union[Image.Image, np.ndarray, Tensor]  # noqa: UP007 (shown as it is in the documentation)


class Codec(
    ModelHubMixin,
    library_name="aeic_lightning",
    tags=["image-compression", "learned-image-compression"],
    license="other",
):
    """Compresses images to `.aeic` streams and back.

    Args:
        model: a trained model; see `from_pretrained`.
        fast: bfloat16 for the sender's own network, if that is quicker; streams stay readable by everyone.
        float32: pictures in float32, also where bfloat16 is quicker. The latents are exact in any case.
        card: what a reader of the weights should know: command, data, results.
        objective: the terms that the model was trained on, as in YAML, so that results can state what was held out.
        realistic_objective: likewise, of the decoder of realistic pictures, if there is one.
    """

    def __init__(
        self,
        model: CompressionModel,
        fast: bool = False,
        card: dict[str, Any] | None = None,
        objective: dict[str, Any] | None = None,
        float32: bool = False,
        realistic_objective: dict[str, Any] | None = None,
    ) -> None:
        self.model = model.eval()
        self.fast, self.float32 = fast, float32
        self.card = card or {}
        self.objective, self.realistic_objective = objective, realistic_objective
        self.bitstream = Bitstream(model, fast)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride] (what a codec needs, beside **options)
        cls,
        name: str | Path,
        *,
        device: str | torch.device = "cpu",
        fast: bool = False,
        float32: bool = False,
        receiver: bool = True,
        hub: bool = False,
        revision: str | None = None,
        **options: Any,
    ) -> "Codec":
        """Load a model.

        Args:
            name: the name of a shipped model (`aeic_lightning.zoo`), a folder that `save_pretrained` wrote, a
                checkpoint of `fit`, or `hf:OWNER/NAME`, a repository on the Hugging Face Hub. Only the last is ever
                fetched: a mistyped path cannot become somebody else's weights.
            device: where the decoder computes. What both sides share is computed on the CPU in any case.
            fast, float32: see `Codec`.
            receiver: without it the codec compresses alone, and no part of the decoder is in memory.
            hub: take `name` as OWNER/NAME on the Hub, without the `hf:`.
            revision: branch, tag or commit of a repository.
            **options: `token`, `cache_dir`, `local_files_only`, `force_download` of `huggingface_hub`.

        Raises UserError when there is no such model or device, the model cannot be fetched, or it is damaged.
        """
        check_device(device)
        if hub or str(name).startswith(HUB):
            path = fetch(str(name).removeprefix(HUB), revision, options)
        else:
            given = [*options, *(["revision"] if revision else [])]
            if given:
                raise UserError(f"{given[0]} is for repositories of the Hugging Face Hub; name one as {HUB}OWNER/NAME")
            path = locate(name)
            if not path.exists():
                raise UserError(f"{missing(name)}; a repository of the Hugging Face Hub is {HUB}OWNER/NAME")
        known = read_config(path) if path.is_dir() else {}
        model = load_model(path, "model", receiver, sender=not receiver)
        model = (model.for_decoding() if receiver else model).to(device)
        return cls(model, fast, known.get("card"), known.get("objective"), float32, known.get("realistic_objective"))

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and other processes, which make the exact form anew."""
        settings = self.fast, self.card, self.objective, self.float32, self.realistic_objective
        return type(self), (self.model, *settings)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of weights, tables and arithmetic, hexadecimal: streams decode with the same fingerprint alone."""
        return self.bitstream.fingerprint.hex()

    def __repr__(self) -> str:
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        rates = counted(self.levels, "rate level") if self.levels else "one rate"
        return f"Codec({type(self.model).__name__}, {millions:.1f} M parameters, {rates})"

    @property
    def levels(self) -> int:
        """Rate levels of the model: a level is a number from 0 to this less one. 0 for a model of one rate."""
        return self.model.rate_levels

    def compress(
        self,
        image: ImageLike,
        *,
        bpp: float | None = None,
        max_bytes: int | None = None,
        level: float | None = None,
        effort: int = 0,
    ) -> bytes:
        """The stream of one image of 1 to 8192 pixels a side.

        Args:
            image: a PIL image of any mode; a numpy array (H, W, 3) or (H, W); or a torch tensor (3, H, W). Arrays and
                tensors are uint8, or floating point in [0, 1].
            bpp: bits per pixel that the file must not exceed; the best picture within is taken.
            max_bytes: the same in bytes.
            level: rate level, from 0 (smallest files) to `levels` - 1.
            effort: gradient steps that refine the latents for the receiver's picture of this image: fewer bits and a
                better picture for seconds to minutes (`bitstream/refine.py`).

        Without any of the first three the middle level is taken. Raises UserError for more than one of them, for a size
        that the model cannot reach, for an image that is none, and for an effort on a model that makes no picture or
        does not know its `objective`.
        """
        return self.encoder(effort).encode_at(as_tensor(image), bpp=bpp, max_bytes=max_bytes, level=level).data

    def encoder(self, effort: int = 0) -> "Bitstream | Refinement":
        """What writes this codec's streams with an effort, by `encode_at` and `encode_batch`."""
        if not effort:
            return self.bitstream
        require("effort", "lightning", "torchmetrics")
        from aeic_lightning.bitstream.refine import Refinement  # the losses take a while to import

        return Refinement(self.bitstream, self.objective, effort)

    @property
    def has_realistic(self) -> bool:
        """Whether there is a second set of decoder weights: `realism` may then be above 0."""
        return getattr(self.model, "realistic", None) is not None

    def decompress(self, data: bytes, realism: float | None = None) -> Image.Image:
        """The picture of a stream (bytes, bytearray or memoryview), RGB.

        `realism` is for a model with two sets of decoder weights: from 0, the picture nearest to the original and the
        default, to 1, the one most like a photograph. On processors where bfloat16 is quicker the picture differs from
        the float32 one in single levels of some pixels.

        Raises UserError for a damaged stream, one of another model, what is no stream, and for a realism that the model
        does not have.
        """
        return Image.fromarray(self.decompress_array(data, realism))

    def decompress_array(self, data: bytes, realism: float | None = None) -> np.ndarray:
        """As `decompress`: uint8 (H, W, 3)."""
        picture = reconstruct(self.model.at_realism(realism), self.bitstream.decode(as_bytes(data)), not self.float32)
        return np.ascontiguousarray(picture.permute(1, 2, 0).numpy())

    def compress_batch(self, images: Sequence[ImageLike], size: int = 8, effort: int = 0, **rate: Any) -> list[bytes]:
        """The streams of several images, each the same bytes as `compress` gives, which takes the same `rate`.

        Neighbours of equal size are coded up to `size` a pass, which saves time where they are small: half of it
        at 256 x 256 pixels.
        """
        tensors = map(as_tensor, images)
        groups, encoder = in_passes(tensors, size, lambda x: x.shape), self.encoder(effort)
        return [file.data for group in groups for file in encoder.encode_batch(torch.cat(group), **rate)]

    def decompress_batch(
        self, streams: Sequence[bytes], size: int = 8, realism: float | None = None
    ) -> list[Image.Image]:
        """The pictures of several streams, up to `size` a pass of the networks where latents agree in size and level.

        For small images, and for GPUs, which one of them does not fill. Single levels may differ from those of
        `decompress` by one, as between machines.
        """
        pictures: list[Image.Image] = []
        model = self.model.at_realism(realism)
        for group in in_passes(map(as_bytes, streams), size, self.bitstream.pass_of):
            found = reconstruct_batch(model, self.bitstream.decode_batch(group), not self.float32)
            pictures += [Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()) for picture in found]
        return pictures

    _dtype = "float16"  # of `save_pretrained`

    def save_pretrained(self, save_directory: str | Path, *, dtype: str = "float16", **hub: Any) -> str | None:
        """Write weights, sizes and a model card into a folder, for `from_pretrained` and every command.

        Values of 16 bits make another codec than this one: they are rounded, so its streams and this one's cannot be
        read by each other. It says so, with both fingerprints. `dtype="float32"` stores this very codec, in twice the
        space.

        Args:
            save_directory: the folder.
            dtype: of the stored values, float16 or float32.
            hub: arguments of `huggingface_hub.ModelHubMixin.save_pretrained`.
        """
        self._dtype = dtype
        return super().save_pretrained(save_directory, **hub)

    def _save_pretrained(self, save_directory: Path) -> None:
        self.write(save_directory, save_directory.name, self._dtype)

    def write(self, folder: Path, name: str, dtype: str = "float16", shares: str | None = None) -> None:
        """`save_pretrained` into a folder that is there, with a model card headed `name`.

        What equals the parts of the shipped model `shares` is left out, and taken from there when the folder is read.
        The source of an encoder that is not this package's is copied beside the weights, into `sources/`.
        """
        parameters = (p.numel() for name, p in self.model.named_parameters() if not name.startswith(REALISTIC))
        config = {
            "model_config": self.model.config,
            "parameters": sum(parameters),
            "aeic_lightning": __version__,
            "card": self.card,
        }
        if self.objective:
            config["objective"] = self.objective
        if self.realistic_objective:
            config["realistic_objective"] = self.realistic_objective
        write_weights(folder, config, self.model.state_dict(), dtype, shares)
        copy_sources(own_sources(config["model_config"]), folder / SOURCES)
        # The fingerprint of what was written, whose values are rounded.
        stored = type(self).from_pretrained(folder)
        write_weights(folder, config | {"fingerprint": stored.fingerprint}, stored.model.state_dict(), dtype, shares)
        if stored.fingerprint != self.fingerprint:
            print(
                f"{folder}: values of 16 bits are another codec ({stored.fingerprint[:16]}) than this one "
                f"({self.fingerprint[:16]}), which cannot read its streams; dtype='float32' keeps this one",
                file=sys.stderr,
            )
        if not (folder / "README.md").exists():
            write_whole(folder / "README.md", model_card(name, config, stored.fingerprint, dtype))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> Any:
        """The card that `save_pretrained` has written already."""
        return _Card()


class _Card:
    def save(self, path: Path) -> None:
        """Nothing: `README.md` is there."""


HUB = "hf:"
"""What the name of a repository of the Hugging Face Hub begins with."""


def fetch(name: str, revision: str | None, options: dict[str, Any]) -> Path:
    """The folder of a repository of the Hub, fetched where it is not there yet. Raises UserError where that fails."""
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG, WEIGHTS], **options))
    except Exception as error:  # of the Hub, the network, the disk or an unknown option: many classes
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{HUB}{name} cannot be fetched ({type(error).__name__}: {reason}); check name, revision, token and network"
        ) from error


def as_bytes(data: bytes | bytearray | memoryview) -> bytes:
    """The bytes of a stream. Raises UserError for anything else, such as a path."""
    if isinstance(data, str | os.PathLike):
        raise UserError(f"a stream is bytes, not a path: decompress(Path({str(data)!r}).read_bytes())")
    if not isinstance(data, bytes | bytearray | memoryview):
        raise UserError(f"a stream is bytes, not {type(data).__name__}")
    return bytes(data)


def as_tensor(image: ImageLike) -> Tensor:
    """An image of any of the accepted kinds as float32 (1, 3, H, W) in [-1, 1]. Raises UserError for anything else."""
    if isinstance(image, Image.Image):
        image = pixels_of(image)
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        if image.dim() == 4 and len(image) == 1:
            image = image[0]
        if image.dim() != 3 or image.shape[0] not in (1, 3):
            raise UserError(f"an image tensor is (3, H, W), not {tuple(image.shape)}")
        image = image.float() if image.is_floating_point() else image  # numpy has no bfloat16
        image = image.permute(1, 2, 0).numpy()
    if isinstance(image, memoryview):
        image = np.asarray(image)
    if isinstance(image, str | os.PathLike):
        raise UserError(f"an image is a PIL image, an array or a tensor, not a path: PIL.Image.open({str(image)!r})")
    if not isinstance(image, np.ndarray):
        raise UserError(f"an image is a PIL image, a numpy array or a torch tensor, not {type(image).__name__}")
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise UserError(f"an image array is (H, W, 3) or (H, W), not {image.shape}")
    if np.issubdtype(image.dtype, np.floating):
        if not (image.size and image.min() >= 0 and image.max() <= 1):  # also refuses NaN
            raise UserError("the values of a floating-point image must be in [0, 1]; scale them, or give uint8")
        image = np.rint(image * 255).astype(np.uint8)
    if image.dtype != np.uint8:
        raise UserError(f"an image is uint8 or floating point in [0, 1], not {image.dtype}")
    image = np.array(np.broadcast_to(image, (*image.shape[:2], 3)))
    return from_uint8(torch.from_numpy(image).permute(2, 0, 1)[None])


def model_card(name: str, config: dict[str, Any], fingerprint: str, dtype: str = "float16") -> str:
    """A model card in Markdown: what is known of the weights, and how to use them."""
    lines = [f"# {name}", "", f"An image codec of `aeic_lightning` {config['aeic_lightning']}.", ""]
    lines += [
        f"- {config['parameters']:,} parameters, {dtype.removeprefix('float')}-bit values",
        f"- fingerprint `{fingerprint[:16]}`",
    ]
    for key, value in config["card"].items():
        if isinstance(value, list):
            lines += ["", f"## {key[0].upper()}{key[1:]}", "", *(f"- {item}" for item in value)]
        else:
            lines.append(f"- {key}: {value}")
    lines += ["", "## Use", "", "    from aeic_lightning import Codec", f'    codec = Codec.from_pretrained("{name}")']
    lines += ["    data = codec.compress(image, bpp=0.06)", "    picture = codec.decompress(data)", ""]
    return "\n".join(lines)
