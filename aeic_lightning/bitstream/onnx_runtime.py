"""The exported halves of a model in onnxruntime: no network of PyTorch is needed, and either half works alone."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from aeic_lightning.bitstream import container
from aeic_lightning.bitstream.exact import ExactContext
from aeic_lightning.bitstream.stream import Decoded, LatentCoder, dial_level, dial_position
from aeic_lightning.bitstream.tables import Tables
from aeic_lightning.errors import UserError
from aeic_lightning.images import to_uint8
from aeic_lightning.models.codec import reflect_pad
from aeic_lightning.models.codec.context import Pattern
from aeic_lightning.models.decoder.tiling import TilingConfig, blend_tiles


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _OnnxContext(ExactContext):
    """A context model in an ONNX graph, which takes the step where there are several."""

    def __init__(self, session: onnxruntime.InferenceSession, pattern: Pattern) -> None:
        super().__init__(pattern)
        self.session = session

    def params(self, base: Tensor, step: int) -> tuple[Tensor, Tensor]:
        inputs = {"base": base.contiguous().numpy()} | ({"step": np.array([step])} if len(self.pattern) > 1 else {})
        mean, scale = self.session.run(None, inputs)
        return torch.from_numpy(mean), torch.from_numpy(scale)


def _level_input(level: float | None) -> dict[str, np.ndarray]:
    return {} if level is None else {"level": np.array([level], np.float32)}


class _Half:
    def __init__(self, folder: str | Path, half: str, threads: int) -> None:
        self.folder, self.threads = Path(folder), threads
        try:
            manifest = json.loads((self.folder / "manifest.json").read_text())
            wrong = [name for name, digest in manifest["files"].items() if sha256(self.folder / name) != digest]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{folder} is not an exported half ({error}); give a folder that `export` wrote") from error
        if wrong:
            raise UserError(f"{self.folder / wrong[0]} is not the file of its manifest; export again")
        if manifest["half"] != half or manifest["stream_version"] != container.VERSION:
            raise UserError(
                f"{folder} is the {manifest['half']} half for streams of version {manifest['stream_version']}; "
                f"the {half} half for version {container.VERSION} is needed"
            )
        hyper_synthesis = self.session("hyper_synthesis.onnx")
        self.manifest = manifest
        shared = Tables.from_dict(json.loads((self.folder / "tables.json").read_text()))
        self.coder = LatentCoder(
            lambda z_hat: torch.from_numpy(hyper_synthesis.run(None, {"z_hat": z_hat.numpy()})[0]),
            _OnnxContext(self.session("context.onnx"), shared.pattern),
            shared,
            bytes.fromhex(manifest["fingerprint"]),
            manifest["levels"],
        )

    def session(self, name: str) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        return onnxruntime.InferenceSession(self.folder / name, options, providers=["CPUExecutionProvider"])


class OnnxSender(_Half):
    """An exported send half in onnxruntime. Raises UserError for a folder whose files are not those of its manifest."""

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        super().__init__(folder, "send", threads)
        self.analysis = self.session("analysis.onnx")

    def encode(self, x: Tensor, level: float | None = None) -> bytes:
        """The file of one image (1, 3, H, W) in [-1, 1], at a rate level where the model has several."""
        padded = reflect_pad(x, self.coder.shared.grid.multiple)
        dial = dial_position(level, self.coder.levels)
        inputs = {"x": padded.numpy()} | _level_input(dial_level(dial, self.coder.levels))
        y, z = (torch.from_numpy(part) for part in self.analysis.run(None, inputs))
        return self.coder.encode_latents(y, z, x.shape[2], x.shape[3], dial).data


class OnnxReceiver(_Half):
    """An exported receive half in onnxruntime. Raises UserError for a folder whose files are not its manifest's."""

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        super().__init__(folder, "receive", threads)
        self.graphs: dict[str, onnxruntime.InferenceSession] = {}

    def decode(self, data: bytes) -> Tensor:
        """The picture of a file, uint8 (3, H, W). Raises UserError as `LatentCoder.decode`."""
        return self.picture(self.coder.decode(data))

    def picture(self, decoded: Decoded) -> Tensor:
        """The picture of decoded latents, uint8 (3, H, W)."""
        inputs = {"y_hat": decoded.y_hat.contiguous().numpy()} | _level_input(decoded.level)
        tiling = self.manifest.get("tiling")
        if tiling is None:
            (x_hat,) = self.run("synthesis", inputs)
        else:
            x_hat = self._in_tiles(inputs, TilingConfig(**tiling))
        return to_uint8(x_hat[0, :, : decoded.height, : decoded.width])

    def run(self, name: str, inputs: dict[str, np.ndarray]) -> list[Tensor]:
        """The outputs of a graph, which is opened once."""
        if name not in self.graphs:
            self.graphs[name] = self.session(f"{name}.onnx")
        return [torch.from_numpy(output) for output in self.graphs[name].run(None, inputs)]

    def _in_tiles(self, inputs: dict[str, np.ndarray], tiling: TilingConfig) -> Tensor:
        """x_hat by the rules of `OneStepDecoder`: memory beside the latents and the picture is that of one tile."""

        def part(graph: str, name: str) -> Callable[[Tensor], Tensor]:
            return lambda x: self.run(graph, {name: x.contiguous().numpy()})[0]

        l_T, l_res = self.run("features", inputs)
        l_0 = blend_tiles(part("denoiser", "l_T"), l_T, tiling.unet_tile, tiling.unet_overlap, scale=1)
        vae = part("vae", "latents")
        return blend_tiles(vae, l_0 + l_res, tiling.vae_tile, tiling.vae_overlap, scale=8).clamp(-1, 1)
