"""Training steps of an experiment by how they are run: `python -m benchmarks.steps CONFIG... [--device cuda]`.

The forms are: operation by operation, or one CUDA graph (`optimization.cuda_graph`); networks in bfloat16
(`optimization.bfloat16`); compiled blocks (`optimization.compile`); crops a step; processes side by side on one GPU. A
minute of it tells how an hour is to be trained. Weights are random, images smooth and already on the device: loaders,
logs and checkpoints are left out, and so is a teacher. Each line is printed when it is known, and all as JSON last.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aeic_lightning.config import load_config
from aeic_lightning.losses.objective import Objective, ObjectiveOutput, objective_settings
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.layers import networks_in_bfloat16
from aeic_lightning.study.complexity import experiment_configs
from aeic_lightning.systems.compiled import CompiledBlocks
from aeic_lightning.systems.graphed import EAGER_STEPS, GraphedPass
from aeic_lightning.timing import peak_memory
from benchmarks.cuda import Clock

FORMS: dict[str, dict[str, Any]] = {
    "operation by operation": {"graph": False},
    "graph": {},
    "graph, bfloat16": {"bfloat16": True},
    "graph, compiled": {"backend": "inductor"},
    "graph, bfloat16, compiled": {"bfloat16": True, "backend": "inductor"},
}
BATCHES = (32, 64, 128)
PROCESSES = (2, 3, 4)


class ExperimentStep(nn.Module):
    """One training step of an experiment without its teacher, on a batch of smooth images.

    Args:
        config: the experiment.
        batch, crop: number and side of the images.
        device: where it runs.
        bfloat16: as `optimization.bfloat16`.
        graph: both passes as one CUDA graph.
        backend: of `torch.compile`, for the blocks; None leaves them.
    """

    def __init__(
        self, config: Path, batch: int, crop: int, device: str = "cpu", bfloat16: bool = False, graph: bool = False,
        backend: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        given = load_config([str(config)], [])
        torch.manual_seed(0)
        self.model = AEIC(*experiment_configs(given, str(config)))
        self.objective = Objective({k: v for k, v in objective_settings(given["model"]["init_args"]).items() if v})
        self.objective.bind(self.model)
        self.train().to(device).to(memory_format=torch.channels_last)
        self.low = bfloat16
        self.compiled = CompiledBlocks(backend or False, self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4, fused=True)
        seeds = torch.rand(batch, 3, crop // 8, crop // 8)
        x = nn.functional.interpolate(seeds, size=(crop, crop), mode="bicubic").clamp(0, 1) * 2 - 1
        self.batch = {"image": x.to(device)}
        self.run = GraphedPass(self, self.passes, self.inputs) if graph else self._eagerly

    def inputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What a step gets beside the images: weights of the terms, rate levels."""
        device = batch["image"].device
        level = self.model.draw_levels(len(batch["image"]))
        weights = torch.tensor(self.objective.weights_at(100), device=device)
        return {"weights": weights} | ({} if level is None else {"level": level.to(device)})

    def passes(self, batch: dict[str, Any], weights: Tensor, level: Tensor | None = None) -> ObjectiveOutput:
        """Forward and backward."""
        with networks_in_bfloat16(self.low), self.compiled.active():
            loss = self.objective(batch, self.model(batch["image"], level), None, None, weights)
            loss.total.backward()
        return loss

    def _eagerly(self, batch: dict[str, Any]) -> ObjectiveOutput:
        return self.passes(batch, **self.inputs(batch))

    def forward(self) -> Tensor:
        """One step; its loss."""
        loss = self.run(self.batch).total.detach()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss


def measure(config: Path, batch: int, crop: int, device: str, steps: int = 20, **form: Any) -> dict[str, float]:
    """Speed and memory of one form in this process."""
    clock = Clock(skip=EAGER_STEPS + 2)
    step = ExperimentStep(config, batch, crop, device, **form)
    for _ in range(clock.skip + steps):
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        clock.tick()
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else peak_memory()
    return {"steps_per_second": clock.speed, "crops_per_second": batch * clock.speed, "memory_gib": memory}


def side_by_side(command: Sequence[str], count: int) -> dict[str, float]:
    """The sums of what that many processes print, as one line of JSON last, when they run at the same time."""
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
    return {name: sum(one[name] for one in found) for name in found[0]}


def table(config: Path, crop: int, device: str, batches: Sequence[int] = BATCHES) -> dict[str, dict[str, float]]:
    """Every form at the first batch; the graph at the others and in several processes. A processor has no graph."""
    results: dict[str, dict[str, float]] = {}

    def note(name: str, found: dict[str, float]) -> None:
        results[name] = found
        print(f"{name:44}", *(f"{key} {value:.2f}" for key, value in found.items()), flush=True)

    forms = {name: {"graph": device == "cuda"} | form for name, form in FORMS.items()}
    plain = {name: form for name, form in forms.items() if "backend" not in form}
    for name, form in plain.items():
        note(f"{name}, {batches[0]} crops", measure(config, batches[0], crop, device, **form))
    best = forms["graph, bfloat16"]
    for batch in batches[1:]:
        note(f"graph, bfloat16, {batch} crops", measure(config, batch, crop, device, **best))
    one = ["--one", "graph, bfloat16", "--batch", str(batches[0])]
    words = [str(config), "--device", device, "--crop", str(crop), *one]
    for count in PROCESSES:
        found = side_by_side([sys.executable, "-m", "benchmarks.steps", *words], count)
        note(f"graph, bfloat16, {batches[0]} crops, {count} processes", found)
    for name in list(forms)[len(plain) :]:  # last: building takes minutes
        note(f"{name}, {batches[0]} crops", measure(config, batches[0], crop, device, **forms[name]))
    return results


def main() -> None:
    """All forms of each experiment, or one form of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--batch", type=int, default=BATCHES[0])
    parser.add_argument("--one", choices=list(FORMS), help="this form alone")
    args = parser.parse_args()
    if args.one:
        form = {"graph": args.device == "cuda"} | FORMS[args.one]
        print(json.dumps(measure(args.configs[0], args.batch, args.crop, args.device, **form)))
        return
    print(json.dumps({str(config): table(config, args.crop, args.device) for config in args.configs}))


if __name__ == "__main__":
    main()
