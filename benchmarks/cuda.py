"""What `python -m benchmarks` measures on a GPU. The same functions run on a processor at tiny sizes, for the tests."""

import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aeic_lightning.cli.commands.bench import picture, plain_latents
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import DecoderConfig
from aeic_lightning.models.random_model import CODECS, random_model
from aeic_lightning.timing import compare

PAPER_FRAMES = {"AEIC-SE": 35.8, "AEIC-ME": 1000 / 58.7}
"""Frames a second that the paper reports for encoding 1920x1080 on an RTX 4090D, entropy coding included."""

FULL = {
    "AEIC-SE": CodecConfig(),
    "AEIC-ME": CodecConfig(
        widths=[64, 128, 192, 256, 320], depths=[2, 2, 2, 2, 2], context_width=960, context_depth=4,
        synthesis_widths=[1024, 768, 512], synthesis_depths=[2, 2, 2], l_T_channels=320, l_res_channels=256,
    ),
}  # fmt: skip
SMALL = Path(__file__).parents[1] / "experiments" / "small" / "teacher_stage2.yaml"
STAGES = ("me_stage1", "me_stage2", "se_stage1", "se_stage2", "se_stage3")


def measure(size: tuple[int, int], repeats: int, small: bool = False, device: str = "cuda") -> dict[str, Any]:
    """Frames a second of both sizes, steps of a small size, the stages of training; `small`, for tests: the first."""
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else device, "size": f"{size[1]}x{size[0]}",
    }  # fmt: skip
    configs = {"tiny": replace(CODECS["tiny"])} if small else FULL
    report["frames"] = {name: frames(config, size, repeats, small, device) for name, config in configs.items()}
    if not small:
        from benchmarks.steps import table as forms_of_steps

        report["steps"] = forms_of_steps(SMALL, 256, device)
        report["stages"] = stages()
    return report


def frames(
    config: CodecConfig, size: tuple[int, int], repeats: int, small: bool, device: str
) -> dict[str, dict[str, dict[str, float]]]:
    """Times of encoding (g_a to context, without the entropy coder) and of decoding, by form."""
    torch.manual_seed(0)
    model = random_model(config) if small else AEIC(config, DecoderConfig()).eval()
    model, x = model.to(device), picture(*size).to(device)
    codec = model.codec

    def encode(x: Tensor) -> Tensor:
        y = codec.g_a(codec.pad(x))
        return plain_latents(codec, y, codec.hyper_encode(y))

    def decode(y_hat: Tensor) -> Tensor:
        return model.decoder(*codec.synthesise(y_hat)).x_hat

    with torch.inference_mode():
        y_hat = encode(x)
        results = {"encode": compare(forms(encode, x, device), repeats)}
        results["decode"] = compare(forms(decode, y_hat, device), repeats)
    return {half: {name: asdict(t) for name, t in timed.items()} for half, timed in results.items()}


def forms(function: Callable[[Tensor], Tensor], x: Tensor, device: str) -> dict[str, Callable[[], None]]:
    """The function in float32, in bfloat16, and compiled in bfloat16, each up to the end of the device's work."""

    def finish() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def run(function: Callable[[Tensor], Tensor], bfloat16: bool) -> Callable[[], None]:
        def call() -> None:
            with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
                function(x)
            finish()

        return call

    result = {"float32": run(function, False), "bfloat16": run(function, True)}
    if device == "cuda":  # on a processor it takes minutes to build
        result["bfloat16, compiled"] = run(torch.compile(function), True)
    return result


# ---------------------------------------------------------------------- training


def stages(steps: int = 10) -> dict[str, dict[str, Any]]:
    """Steps a second and memory of each paper stage, with one shared base and with two; each in its own process."""
    from benchmarks.full_size_files import make_files

    results = {}
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder))
        for stage in STAGES:
            for shared in (True, False):
                if stage.startswith("me_") and not shared:
                    continue  # a teacher's own training has one base
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.stages",
                    stage,
                    "--files",
                    str(files),
                    "--steps",
                    str(steps),
                ]
                done = subprocess.run([*command, *(["--shared"] if shared else [])], capture_output=True, text=True)
                name = f"{stage}, {'one base' if shared else 'two bases'}"
                results[name] = (
                    json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0
                    else {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
                )  # fmt: skip
                print(name, results[name], flush=True)
    return results


class Clock:
    """Steps a second, of all but the first `skip` steps."""

    def __init__(self, skip: int = 2) -> None:
        self.skip, self.count, self.began, self.ended = skip, 0, 0.0, 0.0

    def tick(self) -> None:
        """One step has ended."""
        self.count += 1
        self.ended = time.perf_counter()
        if self.count == self.skip:
            self.began = self.ended

    @property
    def speed(self) -> float:
        return (self.count - self.skip) / max(self.ended - self.began, 1e-9) if self.count > self.skip else float("nan")


def write(out: io.StringIO, report: dict[str, Any]) -> None:
    """The tables."""
    from benchmarks.__main__ import table

    print(f"\n### {report['device']}\n\nRandom weights, {report['size']}, one image at a time. Encoding is without the "
          "entropy coder, which the paper's time (RTX 4090D, 1920x1080) includes.\n", file=out)  # fmt: skip
    rows = []
    for name, halves in report["frames"].items():
        for half, kinds in halves.items():
            paper = f"{PAPER_FRAMES[name]:.1f}" if half == "encode" and name in PAPER_FRAMES else ""
            rows += [
                [name, half, form, f"{1 / t['seconds']:.1f}", f"{t['ratio']:.2f}", paper] for form, t in kinds.items()
            ]
    table(out, ["model", "", "form", "frames a second", "time, ratio", "paper, frames a second"], rows)
    if report.get("steps"):
        print(f"\n#### Steps of {SMALL.parent.name}/{SMALL.name}\n\nWithout loader and logs, crops of 256.\n", file=out)
        rows = [[name, *(f"{value:.1f}" for value in found.values())] for name, found in report["steps"].items()]
        table(out, ["form", "steps a second", "crops a second", "memory, GiB"], rows)
    if report.get("stages"):
        print("\n#### Training\n\nThe stages of experiments/paper at their own batch size, with EfficientNet-Lite0 in "
              "the place of VGG, CLIP and DINOv3.\n", file=out)  # fmt: skip
        rows = [[name, f"{r['steps_per_second']:.2f}", f"{r['peak_memory_gib']:.1f}"] if "failed" not in r
                else [name, r["failed"], ""] for name, r in report["stages"].items()]  # fmt: skip
        table(out, ["stage", "steps a second", "memory, GiB"], rows)
