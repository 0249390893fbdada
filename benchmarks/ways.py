"""How far a reader goes to follow a task through the sources: `python -m benchmarks.ways`.

Three tasks run at sizes that take seconds, with everything imported beforehand:

- an image through `compress`;
- a distillation step of eight terms;
- from a sweep file whose 24 runs are finished to its page and a comparison.

Counted are the project's files and their lines that run, and the returns: calls from one file into another that has
been entered before, each pair of files once. Lines that run while a module is imported do not count.
"""

import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = tuple(str(ROOT / name) + "/" for name in ("aeic_lightning", "callbacks", "datamodules"))


class Followed:
    """What `run` passes through: lines by file, and the pairs of files that call each other."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self.lines: set[tuple[str, int]] = set()
        self.entered: dict[str, None] = {}
        self.pairs: dict[tuple[str, str], None] = {}
        self.returns = 0
        before = sys.gettrace()
        sys.settrace(self._called)
        try:
            run()
        finally:
            sys.settrace(before)

    @property
    def files(self) -> list[str]:
        """In the order in which they are entered."""
        return list(self.entered)

    def _called(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGES) or _while_imported(frame):
            return None
        outer = frame.f_back
        while outer is not None and not outer.f_code.co_filename.startswith(PACKAGES):
            outer = outer.f_back
        if outer is not None and outer.f_code.co_filename != code.co_filename:
            pair = (outer.f_code.co_filename, code.co_filename)
            if pair not in self.pairs:
                self.pairs[pair] = None
                self.returns += code.co_filename in self.entered
        self.entered[code.co_filename] = None
        return self._line

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line


def _while_imported(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename.startswith(PACKAGES):
        if frame.f_code.co_name == "<module>":
            return True
        frame = frame.f_back
    return False


def small() -> tuple[Any, Any]:
    """Sizes of a codec and a decoder that build in milliseconds."""
    from aeic_lightning.models.codec import CodecConfig
    from aeic_lightning.models.decoder import DecoderConfig, UNetConfig, VAEConfig

    codec = CodecConfig(
        widths=[8, 8, 16, 16, 32], depths=[1] * 5, context_width=16, context_depth=1,
        synthesis_widths=[32, 24, 16], synthesis_depths=[1] * 3, l_T_channels=12, l_res_channels=8,
    )  # fmt: skip
    unet = UNetConfig(widths=[8, 16, 16, 16], heads=[1, 2, 2, 2], layers=1, groups=4)
    return codec, DecoderConfig(unet=unet, vae=VAEConfig(widths=[8, 8, 8, 16], layers=0, groups=4))


def called(words: list[str]) -> None:
    """One command of the command line, quietly."""
    from aeic_lightning.cli import main

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(words)
    if code:
        raise SystemExit(f"{' '.join(words)}: exit code {code}: {said.getvalue()}")


def compressing(folder: Path) -> Callable[[], Any]:
    """An image through `compress`."""
    import torch
    from PIL import Image

    from aeic_lightning.models.aeic import AEIC
    from aeic_lightning.models.random_model import save

    torch.manual_seed(0)
    save(AEIC(*small()), folder / "model.ckpt")
    Image.radial_gradient("L").convert("RGB").resize((128, 64)).save(folder / "image.png")
    words = ["compress", str(folder / "image.png"), "--checkpoint", str(folder / "model.ckpt"), "-o"]
    called([*words, str(folder / "first")])  # all is imported then
    return lambda: called([*words, str(folder / "second")])


def distilling(folder: Path) -> Callable[[], Any]:
    """A distillation step of eight terms."""
    import lightning
    import torch

    from aeic_lightning.models.aeic import AEIC
    from aeic_lightning.models.random_model import save
    from aeic_lightning.systems import DistillationSystem, OptimizationConfig

    torch.manual_seed(0)
    save(AEIC(*small()), folder / "teacher.ckpt")
    terms = ("mse", "lpips", "edge_dists", "semantic", "adversarial", "L_enc", "L_dec")
    objective = {"rate": 1.0} | dict.fromkeys(terms, 0.1)
    system = DistillationSystem(*small(), objective, OptimizationConfig(), teacher=str(folder / "teacher.ckpt"))
    data: Any = [{"image": torch.rand(2, 3, 128, 128) * 2 - 1, "name": ["a", "b"]}] * 2
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    step, ways = system.training_step, []

    def followed(batch: dict[str, Any], batch_idx: int) -> Any:
        losses = []
        ways.append(Followed(lambda: losses.append(step(batch, batch_idx))))
        return losses[0]

    system.training_step = followed
    trainer.fit(system, torch.utils.data.DataLoader(data, batch_size=None))
    return lambda: ways[-1]


def studying(folder: Path) -> Callable[[], Any]:
    """From a sweep file with 24 finished runs to page and comparison."""
    import yaml
    from PIL import Image

    from aeic_lightning.study.sweep_file import RECORD, read_sweep

    grid = {"arm": ["none", "enc", "dec"], "lambda": [0.5, 1.0, 2.0, 4.0], "seed": [0, 1]}
    name = "{arm}_{lambda}_{seed}"
    sweep = {
        "root": str(folder / "runs"),
        "runs": [{"name": name, "config": str(ROOT / "experiments/tiny/teacher_stage1.yaml"), "grid": grid}],
        "compare": {"runs": ["none_1.0_0", "enc_1.0_0"], "out": str(folder / "comparison")},
        "report": {"out": str(folder / "report"), "against": [{"reference": {"arm": "none"}}]},
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    for run in read_sweep(folder / "sweep.yaml", []).runs:
        pictures = run.folder / "reconstructions"
        pictures.mkdir(parents=True)
        arm, rate, seed = run.name.split("_")
        worse = {"none": 1.3, "enc": 1.1, "dec": 1.0}[arm] * (1 + 0.01 * int(seed))
        rows = []
        for number, image in enumerate(("cat", "dog", "owl")):
            bpp = 0.1 * float(rate) ** -0.7 * (1 + 0.2 * number)
            row = {"name": image, "height": 24, "width": 40, "crc32": number, "bytes": 40, "bpp": worse * bpp}
            rows.append(row | {"bpp_estimate": 0.9 * worse * bpp, "psnr": 20 - 5 * float(rate) ** 0.5 + number})
            for file in (image, f"{image}_original"):
                Image.new("RGB", (40, 24), (number, 99, 9)).save(pictures / f"{file}.png")
        means = {
            key: {"mean": sum(row[key] for row in rows) / 3, "images": 3} for key in ("bpp", "bpp_estimate", "psnr")
        }
        info = {key: {"backbone": None, "version": "1", "options": {}} for key in means}
        figures = {"step": 5, "images": rows, "metrics": means, "set_metrics": {}, "metric_info": info}
        (run.folder / "metrics_val.json").write_text(json.dumps(figures))
        costs = {"encoder_macs_per_pixel": {"g_a": 900.0, "encode": 1400.0}, "encoder_parameters": {"encode": 9}}
        labels = {"role": "teacher", "arm": arm, "lambda": float(rate), "seed": int(seed)}
        said = {"labels": labels, "costs": costs, "loss_saw": [], "settings": {}}  # as `fit` writes it at its start
        record = {"command": f"fit {run.name}", "git": None, "seed": int(seed), "experiment": said}
        (run.folder / "run.json").write_text(json.dumps(record))
        (run.folder / "config.yaml").write_text(yaml.safe_dump(run.resolved()))
        (run.folder / RECORD).touch()
    called(["sweep", "--config", str(folder / "sweep.yaml")])  # all is imported then
    return lambda: called(["sweep", "--config", str(folder / "sweep.yaml")])


def main() -> int:
    """Print the table."""
    print("| way | files | lines run | returns |\n|---|---|---|---|")
    for make in (compressing, distilling, studying):
        with tempfile.TemporaryDirectory() as folder:
            run = make(Path(folder))
            way = run() if make is distilling else Followed(run)  # a step is followed inside of its run
        print(f"| {str(make.__doc__).rstrip('.')} | {len(way.files)} | {len(way.lines)} | {way.returns} |", flush=True)
        if "-v" in sys.argv:  # each file with those that it calls; ! marks a return
            known: set[str] = set(way.files[:1])
            for caller, called_file in way.pairs:
                mark = "!" if called_file in known else " "
                known.add(called_file)
                print(mark, *(file.removeprefix(f"{ROOT}/") for file in (caller, called_file)), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
