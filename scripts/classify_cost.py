"""What `classify` costs against `decompress` and a classifier of the picture: time and memory, at full size.

    python scripts/classify_cost.py [--repeats 5] [--threads 1] [--no-aeic]

Random weights: neither depends on training. For each system a file is written first; then a process classifies it from
the latents, and another one decodes the picture and gives it to timm's DeiT-S at 224 x 224 (22 M parameters, what the
head has too). Both read the file, entropy decoding included. Times are CPU seconds of one image, models loaded:
medians, the first pass not counted. (On a busy machine the clock says little.) Memory is the peak of the process with
its models. AEIC's diffusion decoder has 3.5 GB of weights and takes minutes, once.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import timm
import torch
from random_base import peak_memory, use_random_base

from aeic_lightning.analysis import AnalysisConfig, AnalysisModel, LatentTransformer, TransformerConfig
from aeic_lightning.analysis.checkpoint import Classifier
from aeic_lightning.evaluation.images import from_uint8
from aeic_lightning.model import AEIC
from aeic_lightning.weights.released import RELEASED

SYSTEMS = {"compress-and-classify, 224x224": (224, 224), "AEIC-SE with a head, 512x768": (512, 768)}  # height, width


def build(system: str, receiver: bool) -> Classifier:
    """The model with its head, the same in every process. Without `receiver` AEIC's base weights are left out."""
    torch.manual_seed(0)
    sizes = TransformerConfig()
    names = [str(i) for i in range(sizes.classes)]
    if system.startswith("compress"):
        model = AnalysisModel(AnalysisConfig())
        model.codec.prior.update_quantiles()
        return Classifier(model, model.transformer, "y_hat", names)
    use_random_base()
    codec, decoder = RELEASED["AEIC-SE"]
    model = AEIC(codec, decoder)
    model.codec.prior.update_quantiles()
    if receiver:
        model.decoder.load_base()
    return Classifier(model, LatentTransformer(codec.widths[-1], sizes), "y_hat", names)


def work(system: str, task: str, file: Path, repeats: int) -> dict[str, float]:
    """One task in this process: its CPU seconds for one image, and this process's peak memory in GB."""
    decodes = task != "classify"
    classifier = build(system, receiver=decodes)
    streams = classifier.streams
    if task == "write":
        height, width = SYSTEMS[system]
        waves = torch.linspace(-9, 9, height)[:, None] + torch.linspace(-16, 16, width)[None]
        file.write_bytes(streams.write(torch.stack([waves.sin(), waves.cos(), (waves / 9).sin()])[None]))
        return {"bytes": file.stat().st_size}
    net = timm.create_model("deit_small_patch16_224").eval() if decodes else None

    @torch.inference_mode()
    def once() -> None:
        decoded = streams.read(file.read_bytes())
        if net is None:
            classifier.logits(decoded)
        else:
            picture = from_uint8(streams.picture(decoded))[None]
            net(torch.nn.functional.interpolate(picture, (224, 224), mode="bicubic", antialias=True))

    seconds = []
    if repeats > 1:
        once()
    for _ in range(repeats):
        start = time.process_time()
        once()
        seconds.append(time.process_time() - start)
    return {"seconds": median(seconds), "memory": peak_memory()}


def main() -> int:
    """Each task in a process of its own; prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="passes; AEIC's decoder is run once")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-aeic", action="store_true", help="leave out AEIC, which needs 6 GB and minutes")
    parser.add_argument("--task", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.task:
        system, task, file, repeats = args.task
        print(json.dumps(work(system, task, Path(file), int(repeats))))
        return 0

    print("| system | task | CPU time an image | peak memory |\n|---|---|---|---|")
    for system in list(SYSTEMS)[: 1 if args.no_aeic else 2]:
        with tempfile.TemporaryDirectory() as folder:
            found = {}
            for task in ("write", "classify", "decompress, then DeiT-S"):
                repeats = 1 if task.startswith("dec") and system.startswith("AEIC") else args.repeats
                words = [sys.executable, __file__, "--threads", str(args.threads), "--task"]
                words += [system, task, str(Path(folder, "image.aeic")), str(repeats)]
                done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
                found[task] = json.loads(done.stdout.splitlines()[-1])
        size = found.pop("write")["bytes"]
        for task, cost in found.items():
            cells = (f"{system}, {size} bytes", task, f"{cost['seconds']:.3f} s", f"{cost['memory']:.2f} GB")
            print(f"| {' | '.join(cells)} |", flush=True)
        one, other = found.values()
        ratios = {key: other[key] / one[key] for key in one}
        print(f"| | ratio | {ratios['seconds']:.1f}x | {ratios['memory']:.1f}x |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
