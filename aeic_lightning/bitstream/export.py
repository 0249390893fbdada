"""ONNX graphs of the two halves, and a runtime for them.

    send/     analysis.onnx         x (1, 3, H, W), padded          -> y, z                  float32
              hyper_synthesis.onnx  z_hat (1, M/2, h/4, w/4)        -> phi (1, M, h, w)      exact
              context.onnx          base (1, M, h, w), step (1,)    -> mean, scale           exact
              tables.json, manifest.json
    receive/  hyper_synthesis.onnx, context.onnx, tables.json, manifest.json as above
              synthesis.onnx        y_hat (1, M, h, w)              -> x_hat (1, 3, s h, s w) float32
    golden/   streams with escaped and skipped symbols, and the latents that they decode to

Either half works without the other. Both carry the fingerprint of the checkpoint, and every file's SHA-256. The graphs
`analysis` and `synthesis` of a model of many rates take one more input, `level` (1,), and the manifest says how many
levels there are.
"""

import hashlib
import json
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim

from aeic_lightning import __version__
from aeic_lightning.bitstream import container
from aeic_lightning.bitstream.exact import Context, from_tokens
from aeic_lightning.bitstream.stream import Bitstream, Decoded, Encoded, LatentCoder, dial_level, dial_position
from aeic_lightning.bitstream.tables import Tables
from aeic_lightning.errors import UserError
from aeic_lightning.files import write_whole
from aeic_lightning.images import to_uint8
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import LatentCodec, reflect_pad
from aeic_lightning.models.codec.context import QuadtreeContext

OPSET = 20


class Analysis(nn.Module):
    """g_a, the gains of the level if there are any, and h_a."""

    def __init__(self, codec: LatentCodec) -> None:
        super().__init__()
        self.g_a = codec.g_a
        self.h_a = codec.h_a
        self.gains = codec.gains
        self.scale_y, self.hyper_encode = codec.scale_y, codec.hyper_encode

    def forward(self, x: Tensor, level: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = self.scale_y(self.g_a(x), level)
        return y, self.hyper_encode(y)


class ContextStep(nn.Module):
    """One context step; `step` (1,) picks the adapters, so that the steps share one copy of g_c."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context
        for side in ("adapter_in", "adapter_out"):
            states = [adapter.state_dict() for adapter in getattr(context, side)]
            for name in states[0]:
                stacked = torch.stack([state[name] for state in states])
                self.register_buffer(f"{side}/{name}".replace(".", "/"), stacked)

    def forward(self, base: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        def adapter(side: str):
            chosen = {
                name.removeprefix(f"{side}/").replace("/", "."): stacked.index_select(0, step).squeeze(0)
                for name, stacked in self.named_buffers(recurse=False)
                if name.startswith(side)
            }
            return lambda x: torch.func.functional_call(getattr(self.context, side)[0], chosen, (x,))

        adapter_out = adapter("adapter_out")
        return self.context.params_by(base, adapter("adapter_in"), lambda x: from_tokens(adapter_out(x)))


class Synthesis(nn.Module):
    """g_s and the decoder."""

    def __init__(self, model: AEIC) -> None:
        super().__init__()
        self.codec, self.decoder = model.codec, model.decoder

    def forward(self, y_hat: Tensor, level: Tensor | None = None) -> Tensor:
        return self.decoder(*self.codec.synthesise(y_hat, level)).x_hat


def export(model: AEIC, folder: Path) -> None:
    """Write both halves and the golden vectors into `folder`, then check them with onnxruntime.

    Raises UserError if the exported halves do not give back the golden vectors.
    """
    model = model.cpu().eval()
    bitstream = Bitstream(model)
    codec = model.codec
    channels, stride = codec.channels, codec.stride
    send, receive = folder / "send", folder / "receive"
    for half in (send, receive):
        half.mkdir(parents=True, exist_ok=True)

    limit = container.LARGEST_SIDE // stride
    rows, columns = Dim("rows", min=1, max=limit // 2), Dim("columns", min=1, max=limit // 2)
    level, level_size = ((torch.tensor([1.0]),), {"level": None}) if bitstream.levels else ((), {})
    try:
        _export(
            Analysis(codec), (torch.zeros(1, 3, 6 * stride, 10 * stride), *level), send / "analysis.onnx",
            {"x": {2: 2 * stride * rows, 3: 2 * stride * columns}} | level_size, ["y", "z"],
        )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise UserError(
            f"{type(codec.g_a).__name__} cannot be exported to ONNX for images of any size: {reason}; use operations "
            "that torch.export takes"
        ) from error
    hyper_synthesis, context = cast(tuple[nn.Module, Context], (bitstream.hyper_synthesis, bitstream.context))
    _export(
        hyper_synthesis, (torch.zeros(1, channels // 2, 3, 5),), send / "hyper_synthesis.onnx",
        {"z_hat": {2: Dim("rows", min=1, max=limit // 4), 3: Dim("columns", min=1, max=limit // 4)}}, ["phi"],
    )  # fmt: skip
    _export(
        ContextStep(context), (torch.zeros(1, channels, 6, 10), torch.tensor([1])), send / "context.onnx",
        {"base": {2: 2 * rows, 3: 2 * columns}, "step": None}, ["mean", "scale"],
    )  # fmt: skip
    _export(
        Synthesis(model), (torch.zeros(1, channels, 6, 10), *level), receive / "synthesis.onnx",
        {"y_hat": {2: 2 * rows, 3: 2 * columns}} | level_size, ["x_hat"],
    )  # fmt: skip
    write_whole(send / "tables.json", json.dumps(bitstream.shared.to_dict()))
    for name in ("hyper_synthesis.onnx", "context.onnx", "tables.json"):
        write_whole(receive / name, (send / name).read_bytes())
    for half in (send, receive):
        _write_manifest(half, bitstream.fingerprint, bitstream.levels)
    write_golden(bitstream, folder / "golden")
    check_golden(folder)


def _export(module: nn.Module, example: tuple[Tensor, ...], path: Path, sizes: dict, outputs: list[str]) -> None:
    size = sum(tensor.nbytes for tensor in module.state_dict().values())
    with torch.no_grad():
        torch.onnx.export(
            module.eval(), example, path, input_names=list(sizes), output_names=outputs, dynamic_shapes=sizes,
            opset_version=OPSET, dynamo=True, verbose=False,
            external_data=size > 1 << 30,  # one protobuf holds 2 GiB at most
        )  # fmt: skip


def _write_manifest(half: Path, fingerprint: bytes, levels: int) -> None:
    files = {path.name: _sha256(path) for path in sorted(half.iterdir()) if path.name != "manifest.json"}
    manifest = {
        "half": half.name,
        "stream_version": container.VERSION,
        "fingerprint": fingerprint.hex(),
        "levels": levels,
        "files": files,
        "opset": OPSET,
        "written_by": {"aeic_lightning": __version__, "torch": torch.__version__, "onnx": onnx.__version__},
        "checked_with": {"onnxruntime": onnxruntime.__version__},
    }
    write_whole(half / "manifest.json", json.dumps(manifest, indent=1) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------- golden vectors


def golden_cases(bitstream: Bitstream) -> dict[str, tuple[int, int, Tensor, Tensor]]:
    """Name -> height, width, y, z: a smooth image, an odd size, and latents whose symbols need the escape."""
    cases = {}
    for name, height, width in (("smooth", 97, 200), ("pixel", 1, 1), ("escapes", 64, 130)):
        down, right = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None]
        x = torch.stack([(3 * down + right).sin(), (5 * right * down).cos(), (down - 4 * right).sin()])[None]
        y, z = bitstream.sender.at_level(bitstream.sender.analyse(x.float()))
        if name == "escapes":
            y, z = y.clone(), z.clone()
            y.flatten()[::97] += 5000.0
            y.flatten()[50::97] -= 40000.0  # beyond what a stream holds: clamped
            z.flatten()[::5] += 3000.0
            z.flatten()[1::5] -= 3000.0
        cases[name] = (height, width, y, z)
    return cases


def write_golden(bitstream: Bitstream, folder: Path) -> None:
    """Streams, and the latents they decode to as little-endian int32: z in steps of 1/64, y in steps of 1/256."""
    folder.mkdir(parents=True, exist_ok=True)
    listing = {"fingerprint": bitstream.fingerprint.hex(), "cases": []}
    for name, (height, width, y, z) in golden_cases(bitstream).items():
        encoded = bitstream.encode_latents(y, z, height, width, dial_position(None, bitstream.levels))
        write_whole(folder / f"{name}.aeic", encoded.data)
        for letter, integers in zip("zy", _integers(encoded), strict=True):
            write_whole(folder / f"{name}.{letter}.i32", integers.tobytes())
        np.save(folder / f"{name}.sender.npy", np.concatenate([y.flatten().numpy(), z.flatten().numpy()]))
        listing["cases"].append(
            {
                "name": name,
                "height": height,
                "width": width,
                "z_shape": list(z.shape),
                "y_shape": list(y.shape),
                "coded": encoded.coded,
                "skipped": y.numel() - encoded.coded,
                "escaped": encoded.escaped,
            }
        )
    write_whole(folder / "golden.json", json.dumps(listing, indent=1) + "\n")


def check_golden(folder: Path) -> None:
    """Run the golden vectors of an export through both halves with onnxruntime. Raises UserError if one differs."""
    sender, receiver = OnnxSender(folder / "send"), OnnxReceiver(folder / "receive")
    for case in json.loads((folder / "golden" / "golden.json").read_text())["cases"]:
        name = folder / "golden" / case["name"]
        data = Path(f"{name}.aeic").read_bytes()
        decoded = receiver.coder.decode(data)
        sent = torch.from_numpy(np.load(f"{name}.sender.npy"))
        y, z = sent.split([int(np.prod(case[shape])) for shape in ("y_shape", "z_shape")])
        again = sender.coder.encode_latents(
            y.view(case["y_shape"]),
            z.view(case["z_shape"]),
            case["height"],
            case["width"],
            dial_position(None, sender.coder.levels),
        )
        expected = [Path(f"{name}.{letter}.i32").read_bytes() for letter in "zy"]
        if again.data != data or [part.tobytes() for part in _integers(decoded)] != expected:
            raise UserError(f"the exported halves do not reproduce golden vector {case['name']} with onnxruntime")


def _integers(latents: Encoded | Decoded) -> tuple[np.ndarray, np.ndarray]:
    z, y = latents.integers()
    return z.astype("<i4"), y.astype("<i4")


# ---------------------------------------------------------------------------------------------------- runtime


class _OnnxContext:
    """The context loop around an ONNX graph."""

    steps = QuadtreeContext.steps
    __call__ = QuadtreeContext.forward

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session

    def params(self, base: Tensor, step: int) -> tuple[Tensor, Tensor]:
        inputs = {"base": base.contiguous().numpy(), "step": np.array([step])}
        mean, scale = self.session.run(None, inputs)
        return torch.from_numpy(mean), torch.from_numpy(scale)


def _level_input(level: float | None) -> dict[str, np.ndarray]:
    return {} if level is None else {"level": np.array([level], np.float32)}


class _Half:
    def __init__(self, folder: str | Path, half: str, threads: int) -> None:
        self.folder, self.threads = Path(folder), threads
        try:
            manifest = json.loads((self.folder / "manifest.json").read_text())
            wrong = [name for name, digest in manifest["files"].items() if _sha256(self.folder / name) != digest]
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
        self.coder = LatentCoder(
            lambda z_hat: torch.from_numpy(hyper_synthesis.run(None, {"z_hat": z_hat.numpy()})[0]),
            _OnnxContext(self.session("context.onnx")),
            Tables.from_dict(json.loads((self.folder / "tables.json").read_text())),
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

    def decode(self, data: bytes) -> Tensor:
        """The picture of a file, uint8 (3, H, W). Raises UserError as `LatentCoder.decode`."""
        decoded = self.coder.decode(data)
        if not hasattr(self, "synthesis"):
            self.synthesis = self.session("synthesis.onnx")
        inputs = {"y_hat": decoded.y_hat.contiguous().numpy()} | _level_input(decoded.level)
        x_hat = torch.from_numpy(self.synthesis.run(None, inputs)[0])
        return to_uint8(x_hat[0, :, : decoded.height, : decoded.width])
