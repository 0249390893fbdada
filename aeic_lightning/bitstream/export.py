"""ONNX graphs of the two halves; `send.py` and `receive.py` run them.

    send/     analysis.onnx         x (1, 3, H, W), padded          -> y, z                  float32
              hyper_synthesis.onnx  z_hat (1, M/2, h/4, w/4)        -> phi (1, M, h, w)      exact
              context.onnx          base (1, M, h, w), step (1,)    -> mean, scale           exact
                                    (without a context: phi (1, 2M, h, w) alone)
              tables.json, manifest.json; send.py, wire.py, coder.py and pictures.py, without PyTorch and this package
    receive/  hyper_synthesis.onnx, context.onnx, tables.json, manifest.json as above; receive.py, wire.py, coder.py
              synthesis.onnx        y_hat (1, M, h, w)              -> x_hat (1, 3, s h, s w) float32
              or, of a model that decodes large images in tiles, its three parts, which the runtime calls tile by tile:
              features.onnx         y_hat (1, M, h, w)              -> l_T, l_res (stride 8) float32
              denoiser.onnx         l_T                             -> l_0                   float32
              vae.onnx              l_0 + l_res                     -> x_hat, not clamped    float32
    golden/   streams with escaped and skipped symbols, the latents that they decode to, and pictures: of a model with
              tiles also one that takes several

Either half works without the other. Both carry the fingerprint of the checkpoint, and every file's SHA-256. The graphs
`analysis` and `synthesis` of a model of many rates take one more input, `level` (1,), and the manifest says how many
levels there are.
"""

import gc
import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnxruntime
import onnxscript.optimizer
import torch
from torch import Tensor, nn
from torch.export import Dim

from aeic_lightning import __version__, pictures
from aeic_lightning.bitstream import receive, send, wire
from aeic_lightning.bitstream.exact import Context, ExactContext, from_tokens
from aeic_lightning.bitstream.stream import Bitstream, dial_position, reconstruct
from aeic_lightning.errors import UserError
from aeic_lightning.files import write_whole
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import LatentCodec
from aeic_lightning.models.decoder.tiling import GRID, TilingConfig

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


class OnlyStep(nn.Module):
    """The parameters of a context model of one step."""

    def __init__(self, context: ExactContext) -> None:
        super().__init__()
        self.context = context

    def forward(self, base: Tensor) -> tuple[Tensor, Tensor]:
        return self.context.params(base, 0)


class Synthesis(nn.Module):
    """g_s and the decoder."""

    def __init__(self, model: AEIC) -> None:
        super().__init__()
        self.codec, self.decoder = model.codec, model.decoder

    def forward(self, y_hat: Tensor, level: Tensor | None = None) -> Tensor:
        return self.decoder(*self.codec.synthesise(y_hat, level)).x_hat


class Features(nn.Module):
    """g_s."""

    def __init__(self, model: AEIC) -> None:
        super().__init__()
        self.g_s, self.gains, self.synthesise = model.codec.g_s, model.codec.gains, model.codec.synthesise

    def forward(self, y_hat: Tensor, level: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.synthesise(y_hat, level)


class Denoise(nn.Module):
    """The denoiser without its hidden states."""

    def __init__(self, model: AEIC) -> None:
        super().__init__()
        self.denoiser = model.decoder.denoiser

    def forward(self, l_T: Tensor) -> Tensor:
        return self.denoiser(l_T).l_0


class Paint(nn.Module):
    """The VAE decoder."""

    def __init__(self, model: AEIC) -> None:
        super().__init__()
        self.vae = model.decoder.vae

    def forward(self, latents: Tensor) -> Tensor:
        return self.vae(latents)


def export(
    bitstream: Bitstream, folder: Path, realism: float | None = None, say: Callable[[str], None] = lambda step: None
) -> None:
    """Write both halves of an AEIC and the golden vectors into `folder`, then check them with onnxruntime.

    The pictures of the receive half are those of `model.at_realism(realism)`. `say` hears what is done next.

    Raises UserError if the exported halves do not give back the golden vectors.
    """
    model = cast(AEIC, bitstream.model).at_realism(realism)
    codec = model.codec
    channels, stride = codec.channels, codec.stride
    sending, receiving = folder / "send", folder / "receive"
    for half in (sending, receiving):
        half.mkdir(parents=True, exist_ok=True)

    limit = wire.LARGEST_SIDE // stride
    rows, columns = Dim("rows", min=1, max=limit // 2), Dim("columns", min=1, max=limit // 2)
    level, level_size = ((torch.tensor([1.0]),), {"level": None}) if bitstream.levels else ((), {})
    say("send: analysis")
    try:
        _export(
            Analysis(codec), (torch.zeros(1, 3, 6 * stride, 10 * stride), *level), sending / "analysis.onnx",
            {"x": {2: 2 * stride * rows, 3: 2 * stride * columns}} | level_size, ["y", "z"],
        )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise UserError(
            f"{type(codec.g_a).__name__} cannot be exported to ONNX for images of any size: {reason}; use operations "
            "that torch.export takes"
        ) from error
    hyper_synthesis, context = cast(tuple[nn.Module, ExactContext], (bitstream.hyper_synthesis, bitstream.context))
    most = limit // codec.z_stride
    say("both: hyper synthesis")
    _export(
        hyper_synthesis, (torch.zeros(1, codec.prior.channels, 3, 5),), sending / "hyper_synthesis.onnx",
        {"z_hat": {2: Dim("rows", min=1, max=most), 3: Dim("columns", min=1, max=most)}}, ["phi"],
    )  # fmt: skip
    say("both: context")
    _export_context(context, codec.context.phi_channels, {2: 2 * rows, 3: 2 * columns}, sending / "context.onnx")
    tiling = model.decoder.config.tiling
    y_hat = (torch.zeros(1, channels, 6, 10), *level)
    y_size = {"y_hat": {2: 2 * rows, 3: 2 * columns}} | level_size
    say("receive: synthesis")
    if tiling is None:
        _export(Synthesis(model), y_hat, receiving / "synthesis.onnx", y_size, ["x_hat"])
    else:
        _export_parts(model, y_hat, y_size, receiving)
    for half, program in ((sending, "send.py"), (receiving, "receive.py")):
        for name in (program, "wire.py", "coder.py"):
            write_whole(half / name, Path(__file__).with_name(name).read_bytes())
    write_whole(sending / "pictures.py", Path(pictures.__file__).read_bytes())
    write_whole(sending / "tables.json", json.dumps(bitstream.shared.to_dict()))
    for name in ("hyper_synthesis.onnx", "context.onnx", "tables.json"):
        write_whole(receiving / name, (sending / name).read_bytes())
    for half in (sending, receiving):
        _write_manifest(half, bitstream.fingerprint, bitstream.levels, tiling if half is receiving else None)
    say("golden vectors")
    write_golden(bitstream, folder / "golden", tiling)
    _write_pictures(model, bitstream, folder / "golden")
    say("check with onnxruntime")
    check_golden(folder)


def _export_context(context: ExactContext, phi_channels: int, size: dict, path: Path) -> None:
    base = torch.zeros(1, phi_channels, 6, 10)
    if len(context.pattern) == 1:
        _export(OnlyStep(context), (base,), path, {"base": size}, ["mean", "scale"])
    elif isinstance(context, Context):
        step = ContextStep(context)
        _export(step, (base, torch.tensor([1])), path, {"base": size, "step": None}, ["mean", "scale"])
    else:
        raise UserError(
            f"{type(context).__name__} cannot be exported: a context model of several steps is one of the adapters and "
            "the g_c of GridContext"
        )


def _export_parts(model: AEIC, y_hat: tuple[Tensor, ...], y_size: dict, receive: Path) -> None:
    """The receiver in three graphs, so that the two large ones can run in tiles."""
    config = model.codec.config
    _export(Features(model), y_hat, receive / "features.onnx", y_size, ["l_T", "l_res"])
    # Sides of latents of whole images, and of tiles, which are multiples of 8.
    unit = math.gcd(GRID, 2 * model.codec.stride // GRID)
    largest = wire.LARGEST_SIDE // GRID // unit
    rows, columns = Dim("rows", min=1, max=largest), Dim("columns", min=1, max=largest)
    size = {2: unit * rows, 3: unit * columns}
    side = 24
    _export(
        Denoise(model), (torch.zeros(1, config.l_T_channels, side, 2 * side),), receive / "denoiser.onnx",
        {"l_T": size}, ["l_0"],
    )  # fmt: skip
    _export(
        Paint(model), (torch.zeros(1, config.l_res_channels, side, 2 * side),), receive / "vae.onnx",
        {"latents": size}, ["x_hat"],
    )  # fmt: skip


def _export(module: nn.Module, example: tuple[Tensor, ...], path: Path, sizes: dict, outputs: list[str]) -> None:
    size = sum(tensor.nbytes for tensor in module.state_dict().values())
    for library in ("onnxscript", "onnx_ir"):
        logging.getLogger(library).setLevel(logging.ERROR)  # a line for each node that stays as it is
    collects = gc.isenabled()
    gc.disable()  # a graph is a million small objects, and each collection looks at all of them
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                module.eval(), example, input_names=list(sizes), output_names=outputs, dynamic_shapes=sizes,
                opset_version=OPSET, dynamo=True, verbose=False, optimize=False,
            )  # fmt: skip
        assert program is not None
        onnxscript.optimizer.optimize_ir(program.model, num_iterations=1)  # a second one changes little
        program.save(path, external_data=size > 1 << 30)  # one protobuf holds 2 GiB at most
    finally:
        if collects:
            gc.enable()


def _write_manifest(half: Path, fingerprint: bytes, levels: int, tiling: TilingConfig | None) -> None:
    paths = sorted(path for path in half.rglob("*") if path.is_file() and path.name != "manifest.json")
    files = {path.relative_to(half).as_posix(): wire.sha256(path) for path in paths}
    manifest = {
        "half": half.name,
        "stream_version": wire.VERSION,
        "fingerprint": fingerprint.hex(),
        "levels": levels,
        **({"tiling": asdict(tiling)} if tiling else {}),
        "files": files,
        "opset": OPSET,
        "written_by": {"aeic_lightning": __version__, "torch": torch.__version__, "onnx": onnx.__version__},
        "checked_with": {"onnxruntime": onnxruntime.__version__},
    }
    write_whole(half / "manifest.json", json.dumps(manifest, indent=1) + "\n")


# ---------------------------------------------------------------------------------------------------- golden vectors


PICTURES = ("smooth", "tiles")
"""Cases whose picture is kept as well."""


def golden_cases(
    bitstream: Bitstream, tiling: TilingConfig | None = None
) -> dict[str, tuple[int, int, Tensor, Tensor]]:
    """Name -> height, width, y, z: a smooth image, an odd size, symbols that need the escape, several tiles."""
    cases = {}
    sizes = [("smooth", 97, 200), ("pixel", 1, 1), ("escapes", 64, 130)]
    if tiling:
        side = GRID * (max(tiling.unet_tile, tiling.vae_tile) + GRID)
        sizes.append(("tiles", side, side))
    for name, height, width in sizes:
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


def write_golden(bitstream: Bitstream, folder: Path, tiling: TilingConfig | None = None) -> None:
    """Streams, and the latents they decode to as little-endian int32: z in steps of 1/64, y in steps of 1/256."""
    folder.mkdir(parents=True, exist_ok=True)
    listing = {"fingerprint": bitstream.fingerprint.hex(), "cases": []}
    for name, (height, width, y, z) in golden_cases(bitstream, tiling).items():
        encoded = bitstream.encode_latents(y, z, height, width, dial_position(None, bitstream.levels))
        write_whole(folder / f"{name}.aeic", encoded.data)
        for letter, integers in zip("zy", encoded.integers(), strict=True):
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


def _write_pictures(model: AEIC, bitstream: Bitstream, folder: Path) -> None:
    for name in PICTURES:
        stream = folder / f"{name}.aeic"
        if stream.exists():
            picture = reconstruct(model, bitstream.decode(stream.read_bytes()))
            np.save(folder / f"{name}.picture.npy", picture.numpy())


def check_golden(folder: Path) -> None:
    """Run the golden vectors of an export through both halves with onnxruntime.

    Raises UserError if one differs: streams and latents in a single bit, pictures by more than one of 255 levels.
    """
    send.check(send.Sender(folder / "send"), folder / "golden")
    receive.check(receive.Receiver(folder / "receive"), folder / "golden")
