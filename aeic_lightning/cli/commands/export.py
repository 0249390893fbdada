"""`export`: both halves as ONNX, a site for browsers, the sender as C, the weights alone, or the decoder as a base."""

import argparse
from collections.abc import Callable
from pathlib import Path

from aeic_lightning.cli import refuse_extra
from aeic_lightning.errors import UserError
from aeic_lightning.extras import require
from aeic_lightning.files import check_can_write, require_model

EPILOG = """
ONNX needs the packages onnx, onnxruntime and onnxscript: pip install 'aeic-lightning[export]'.

With --weights, the target is a folder of config.json, model.safetensors (16-bit values) and a model card, which every
command takes where it asks for a checkpoint, and `Codec.from_pretrained` too.

With --web, it is a static site that codes in the visitor's browser; serve it with any web server. It needs npm, or
--runtime: what `npm pack onnxruntime-web@VERSION` writes.

With --base, it is a folder of unet/ and vae.safetensors: the decoder as the frozen base of others, which train adapters
over it (`decoder.pretrained: {unet: DIR/unet, vae: DIR/vae.safetensors}`).

With --c, it is a folder of C99 without floating point or libraries, for a model whose sender is in integers
(experiments/micro): `make -C DIR` builds `send`, which writes the streams of `compress`, byte for byte.

examples:
  aeic-lightning export --checkpoint runs/tiny/student/checkpoints/last.ckpt -o exported/
  aeic-lightning export --checkpoint student.ckpt --weights -o my-student/ --results kodak.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Checkpoint and target."""
    parser.epilog = EPILOG
    parser.add_argument("--checkpoint", required=True, help="the model to export")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="a folder that does not exist yet")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--weights", action="store_true", help="the weights for this package instead of ONNX")
    form.add_argument("--web", action="store_true", help="a site that codes in the browser instead of ONNX")
    form.add_argument("--base", action="store_true", help="the decoder as a base for adapters instead of ONNX")
    form.add_argument("--c", action="store_true", help="the sender as C without floating point instead of ONNX")
    parser.add_argument("--realistic", metavar="CKPT",
                        help="with --weights: a checkpoint that moved the decoder alone, for "
                        "`decompress --realism`")  # fmt: skip
    parser.add_argument("--shares", metavar="MODEL",
                        help="with --weights: a shipped model; what equals its parts is not stored again")  # fmt: skip
    parser.add_argument("--realism", type=float, metavar="R",
                        help="of the pictures of the ONNX receive half, from 0 (default) to 1")  # fmt: skip
    parser.add_argument("--runtime", type=Path, metavar="FILE.tgz",
                        help="with --web: onnxruntime-web's npm package (default: fetched by npm)")  # fmt: skip
    parser.add_argument("--card", type=Path, metavar="FILE.yaml",
                        help="with --weights: entries of the model card, each a line or a list of lines")  # fmt: skip
    parser.add_argument("--results", type=Path, metavar="FILE.json",
                        help="with --weights: results whose metrics the card lists: those that bear DIR's name, "
                        "or all")  # fmt: skip


def run(args: argparse.Namespace, extra: list[str]) -> None:
    """Write the folder, whole or not at all."""
    refuse_extra(extra)
    if (args.card or args.results) and not args.weights:
        raise UserError("--card and --results go with --weights: ONNX folders have no card")
    if args.realistic and not args.weights:
        raise UserError("--realistic goes with --weights; an ONNX folder of the result takes --realism")
    if args.shares and not args.weights:
        raise UserError("--shares goes with --weights; the other forms hold all that they need")
    if args.realism is not None and (args.weights or args.base or args.c or args.web):
        raise UserError("--realism is of ONNX folders; a folder of --weights keeps both decoders")
    if args.runtime and not args.web:
        raise UserError("--runtime goes with --web")
    output = Path(args.out)
    if output.exists():
        raise UserError(f"{output} exists; export into a folder that does not")
    check_can_write(output)
    require_model(args.checkpoint)
    forms = {"weights": _weights, "base": _base, "c": _c, "web": _web}
    write = next((forms[name] for name in forms if getattr(args, name)), _onnx)(args)
    import shutil
    import tempfile

    output.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        write(beside)
        beside.chmod(0o755)
        beside.rename(output)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    if any(getattr(args, name) for name in forms):
        size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
        print(f"{output}  {size / 2**20:.1f} MiB")
        return
    for half in ("send", "receive"):
        size = sum(path.stat().st_size for path in (output / half).rglob("*") if path.is_file())
        print(f"{output / half}  {size / 2**20:.1f} MiB")
    print(f"{output / 'golden'}  reproduced by both halves in onnxruntime")


def _say(step: str) -> None:
    print(step, flush=True)


def _onnx(args: argparse.Namespace) -> Callable[[Path], None]:
    require("export", "onnx", "onnxruntime", "onnxscript")
    from aeic_lightning.bitstream.export import export
    from aeic_lightning.checkpoints.checkpoint import load_aeic
    from aeic_lightning.codec import Codec
    from aeic_lightning.own_classes import SOURCES, copy_sources, own_sources

    model = load_aeic(args.checkpoint).for_decoding()
    bitstream = Codec(model).bitstream

    def write(folder: Path) -> None:
        export(bitstream, folder, args.realism, _say)
        copy_sources(own_sources(model.config), folder / SOURCES)

    return write


def _c(args: argparse.Namespace) -> Callable[[Path], None]:
    from aeic_lightning.bitstream.c_sender import export_c
    from aeic_lightning.checkpoints.checkpoint import load_aeic
    from aeic_lightning.codec import Codec

    bitstream = Codec(load_aeic(args.checkpoint)).bitstream
    return lambda folder: export_c(bitstream, folder)


def _web(args: argparse.Namespace) -> Callable[[Path], None]:
    require("export", "onnx", "onnxruntime", "onnxscript")
    import tempfile

    from aeic_lightning.bitstream.export import export
    from aeic_lightning.checkpoints.checkpoint import load_aeic
    from aeic_lightning.codec import Codec
    from aeic_lightning.web.site import check_runtime, fetch_runtime, write_site

    runtime = args.runtime or fetch_runtime()
    check_runtime(runtime)  # before the export, which takes long
    bitstream = Codec(load_aeic(args.checkpoint).for_decoding()).bitstream

    def write(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as halves:
            export(bitstream, Path(halves), say=_say)
            for name, size in write_site(Path(halves), folder, runtime).items():
                print(f"{name}  {size / 1e6:.1f} MB packed")

    return write


def _weights(args: argparse.Namespace) -> Callable[[Path], None]:
    from aeic_lightning.checkpoints.checkpoint import add_realistic, load_aeic
    from aeic_lightning.codec import Codec
    from aeic_lightning.study.model_card import card, objective, realistic

    codec = Codec.from_pretrained(args.checkpoint)
    if args.realistic:
        model = load_aeic(args.checkpoint)
        add_realistic(model, args.realistic)
        known, trained = codec.card | realistic(args.realistic), objective(args.realistic)
        codec = Codec(model, card=known, objective=codec.objective, realistic_objective=trained)
    codec.card = card(args.checkpoint, codec.card, args.card, args.results, Path(args.out).name)
    codec.objective = codec.objective or objective(args.checkpoint)
    return lambda folder: codec.write(folder, Path(args.out).name, shares=args.shares)


def _base(args: argparse.Namespace) -> Callable[[Path], None]:
    from aeic_lightning.checkpoints.checkpoint import load_aeic
    from aeic_lightning.models.decoder.stable_diffusion import write_base

    decoder = load_aeic(args.checkpoint).decoder
    decoder.merge_adapter()
    parts = {"denoiser.": decoder.denoiser, "vae.": decoder.vae}
    state = {prefix + name: t for prefix, part in parts.items() for name, t in part.state_dict().items()}
    return lambda folder: write_base(folder, decoder.config.unet, state)
