"""What `classify` costs against `decompress` and a classifier of the picture: time and memory, at full size.

    python -m benchmarks.classify_cost [--repeats 5] [--threads 1] [--no-aeic]

Random weights: neither depends on training. For each system a file is written first; then a process classifies it from
the latents, and another one decodes the picture and gives it to timm's DeiT-S at 224 x 224 (22 M parameters, what the
head has too). Both read the file, entropy decoding included. Times are CPU seconds of one image, models loaded:
medians, the first pass not counted. (On a busy machine the clock says little.) Memory is the peak of the process,
libraries and models included, once they are loaded. AEIC's diffusion decoder has 3.5 GB of weights; it is run once.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median

import timm
import torch

from aeic_lightning.bitstream.stream import reconstruct
from aeic_lightning.checkpoints.checkpoint import from_dict, load_model
from aeic_lightning.checkpoints.released import import_released
from aeic_lightning.classification import (
    ClassificationConfig,
    ClassificationModel,
    LatentTransformer,
    TransformerConfig,
)
from aeic_lightning.classification.checkpoint import load_classifier
from aeic_lightning.codec import Codec
from aeic_lightning.images import from_uint8
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import PretrainedConfig
from benchmarks.full_size_files import make_files, peak_memory, reset_peak_memory

SYSTEMS = {"compress-and-classify, 224x224": (224, 224), "AEIC-SE with a head, 512x768": (512, 768)}  # height, width


def write(system: str, folder: Path) -> int:
    """A checkpoint with random weights, and the file of an image by it; the bytes of the file."""
    torch.manual_seed(0)
    path = folder / "model.ckpt"
    if system.startswith("compress"):
        model = ClassificationModel(ClassificationConfig())
        state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        torch.save({"model_config": model.config, "state_dict": state}, path)
    else:
        files = make_files(folder / "files")
        base = PretrainedConfig(unet=str(files / "sd-turbo"), vae=str(files / "halfDecoder.ckpt"))
        import_released(files / "AEIC_SE.pkl", path, base)
        checkpoint = torch.load(path, weights_only=True)
        sizes = TransformerConfig()
        head = LatentTransformer(from_dict(CodecConfig, checkpoint["model_config"]["codec"]).channels, sizes)
        checkpoint["model_config"]["head"] = {"reads": "y_hat", "transformer": asdict(sizes), "picture_widths": []}
        checkpoint["state_dict"] |= {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
        torch.save(checkpoint, path)
    height, width = SYSTEMS[system]
    waves = torch.linspace(-9, 9, height)[:, None] + torch.linspace(-16, 16, width)[None]
    x = torch.stack([waves.sin(), waves.cos(), (waves / 9).sin()])[None]
    return (folder / "image.aeic").write_bytes(Codec.from_pretrained(path).bitstream.encode(x))


def work(task: str, folder: Path, repeats: int) -> dict[str, float]:
    """One task in this process: its CPU seconds for one image, and this process's peak memory in GB."""
    file = folder / "image.aeic"
    if task == "classify":
        classifier = load_classifier(folder / "model.ckpt")

        @torch.inference_mode()
        def once() -> None:
            classifier.logits(classifier.codec.bitstream.decode(file.read_bytes()))
    else:
        model, net = load_model(folder / "model.ckpt"), timm.create_model("deit_small_patch16_224").eval()
        bitstream = Codec(model).bitstream

        @torch.inference_mode()
        def once() -> None:
            picture = from_uint8(reconstruct(model, bitstream.decode(file.read_bytes())))[None]
            net(torch.nn.functional.interpolate(picture, (224, 224), mode="bicubic", antialias=True))

    reset_peak_memory()
    if repeats > 1:
        once()
    seconds = []
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
    parser.add_argument("--no-aeic", action="store_true", help="leave out AEIC: 6 GB of memory, 3 of disk, minutes")
    parser.add_argument("--task", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.task:
        system, task, folder, repeats = args.task
        print(json.dumps(write(system, Path(folder)) if task == "write" else work(task, Path(folder), int(repeats))))
        return 0

    print("| system | task | CPU time an image | peak memory |\n|---|---|---|---|", flush=True)
    for system in list(SYSTEMS)[: 1 if args.no_aeic else 2]:
        with tempfile.TemporaryDirectory() as folder:
            found = {}
            for task in ("write", "classify", "decompress, then DeiT-S"):
                repeats = 1 if task.startswith("dec") and system.startswith("AEIC") else args.repeats
                words = [sys.executable, "-m", "benchmarks.classify_cost", "--threads", str(args.threads), "--task"]
                done = subprocess.run(
                    [*words, system, task, folder, str(repeats)], stdout=subprocess.PIPE, text=True, check=True
                )
                found[task] = json.loads(done.stdout.splitlines()[-1])
        size = found.pop("write")
        for task, cost in found.items():
            cells = (f"{system}, {size} bytes", task, f"{cost['seconds']:.3f} s", f"{cost['memory']:.2f} GB")
            print(f"| {' | '.join(cells)} |", flush=True)
        one, other = found.values()
        print(
            f"| | ratio | {other['seconds'] / one['seconds']:.1f}x | {other['memory'] / one['memory']:.1f}x |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
