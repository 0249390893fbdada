"""Runs that are killed and resumed, again and again, against the run that nobody disturbed.

A stage is trained twice: in one go, and with a kill at each of several points, after each of which the same command
(`--ckpt_path auto`) goes on. At the end everything must be equal to the last bit: weights, optimizers, discriminator,
callbacks' records, every point of every curve (each once), metrics, pictures.
"""

import os
import random
import resource
import signal
import struct
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback

from tests.robustness.runs import ROOT, run, start, wait

STEPS, VALIDATE_EVERY, SAVE_EVERY, EPOCH = 9, 3, 2, 4
"""Saves after 2, 4, 6, 8, 9 steps; validations after 3, 6, 9; epochs of 4 steps."""


class Stage(NamedTuple):
    """One experiment file, the stages that it starts from, and where its runs are killed: (point, step)."""

    config: str
    needs: tuple[str, ...]
    kills: tuple[tuple[str, int], ...]


STAGES = {
    "teacher_stage1": Stage(
        "tiny/teacher_stage1.yaml",
        (),
        (("outside", 0), ("batch_end", 1), ("batch_start", 2), ("validation", 3), ("before_update", 4), ("saving", 6)),
    ),
    "teacher_stage2": Stage(
        "tiny/teacher_stage2.yaml",
        ("teacher_stage1",),
        (("outside", 0), ("before_update", 0), ("before_update", 3), ("batch_end", 4), ("validation_end", 6)),
    ),
    "student_none": Stage("tiny/student_none.yaml", ("teacher_stage2",), (("validation", 6), ("saving", 8))),
    "student_enc_dec": Stage(
        "tiny/student_enc_dec.yaml",
        ("teacher_stage2",),
        (("outside", 0), ("losses", 2), ("validation_end", 3), ("batch_start", 5), ("saving", 8)),
    ),
    "student_stage1": Stage(
        "tiny/student_stage1.yaml", ("teacher_stage2",), (("batch_end", 4), ("last_validation", 9))
    ),
    "student_stage2": Stage(
        "tiny/student_stage2.yaml",
        ("teacher_stage2", "student_stage1"),
        (("losses", 1), ("saving", 4), ("before_update", 5), ("batch_end", 7), ("last_validation", 9)),
    ),
    "step1": Stage(
        "classification/step1.yaml", (), (("outside", 0), ("batch_end", 2), ("before_update", 3), ("validation_end", 6))
    ),
    "step2": Stage(
        "classification/step2_q1.yaml",
        ("step1",),
        (("batch_start", 1), ("validation", 3), ("losses", 5), ("saving", 8)),
    ),
    "codec": Stage("classification/codec.yaml", (), (("before_update", 4), ("last_validation", 9))),
    "head_frozen": Stage("classification/head_frozen.yaml", ("codec",), (("batch_end", 5),)),
    # Stage 2 from random weights, narrow and of 4 steps: what the test suite tries, for it needs no stage before.
    "adversary": Stage("tiny/teacher_stage2.yaml", (), (("before_update", 3), ("saving", 4))),
    "head_joint": Stage("classification/head_joint.yaml", ("codec",), (("losses", 4), ("validation", 6))),
}


NARROW = [
    "codec.widths=[16,16,16,32,32]", "codec.depths=[1,1,1,1,1]", "codec.context_width=32",
    "codec.synthesis_widths=[32,24,16]", "codec.l_T_channels=16", "codec.l_res_channels=8",
    "decoder.unet.widths=[16,16,16,16]", "decoder.vae.widths=[8,8,8,8]",
]  # fmt: skip
"""Sizes of the adversary's generator: the test suite has little time."""


class Kill(Callback):
    """Ends its own process, without any chance to tidy up, at one point of the run.

    Args:
        at: `batch_start`, `losses` (after the losses, before the backward pass is used), `before_update` (where there
            is an adversary, it has been updated and the generator has not), `batch_end`, `validation` (in the middle of
            it), `validation_end`, `last_validation`, `saving` (the kernel ends the process when half of the checkpoint
            is written), or `outside` (never: another process kills).
        step: generator steps that are done; the first point at or after it counts.
    """

    def __init__(self, at: str, step: int) -> None:
        self.at, self.step = at, step

    def _at(self, at: str, module: Any) -> None:
        if self.at == at and module.generator_step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self._at("batch_start", pl_module)
        see = pl_module.guard.see

        def see_and_die(terms, files) -> None:
            see(terms, files)
            self._at("losses", pl_module)

        pl_module.guard.see = see_and_die

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self._at("before_update", pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self._at("batch_end", pl_module)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if batch_idx == 1:
            self._at("validation", pl_module)
            self._at("last_validation", pl_module)

    def on_validation_end(self, trainer, pl_module) -> None:
        self._at("validation_end", pl_module)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        if self.at == "saving" and pl_module.generator_step >= self.step:
            half = (Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt").stat().st_size // 2
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (half, half))


def words(stage: str, root: Path, seed: int = 0, kill: tuple[str, int] | None = None) -> list[str]:
    """The command of one run of a stage, small."""
    experiment = ROOT / "experiments" / STAGES[stage].config
    classifies = STAGES[stage].config.startswith("classification")
    quality = "accuracy.AccuracyMetrics" if classifies and stage != "codec" else "quality.QualityMetrics"
    callbacks = [
        f"{{class_path: callbacks.checkpoint.LastCheckpoint, init_args: {{every_n_steps: {SAVE_EVERY}}}}}",
        f"{{class_path: callbacks.{quality}, init_args: {{lpips: [], dists: []}}}}",
        "{class_path: callbacks.distribution.PatchFID, init_args: {patch_size: 32, min_patches: 4, min_images: 1,"
        " kid_subset_size: 4, every_n_validations: 2}}",
        "{class_path: callbacks.pictures.ReconstructionGrid, init_args: {every_n_validations: 2}}",
        "{class_path: callbacks.curves.RateDistortionPicture, init_args: {metrics: [psnr]}}",
        "{class_path: callbacks.curves.TapCurves, init_args: {every_n_steps: 1}}",
        "{class_path: callbacks.layout.ComparisonLayout}",
    ]
    if kill:
        callbacks.append(f"{{class_path: tests.robustness.kills.Kill, init_args: {{at: {kill[0]}, step: {kill[1]}}}}}")
    data = (
        ["--vars.batch_size=2", "--data.init_args.eval_batch_size=140"]  # three batches of 400 digits
        if classifies
        else ["--data.init_args.batch_size=2", "--data.init_args.val_max_size=[96,128]"]
    )
    steps = STEPS
    if stage == "adversary":
        steps = 4
        data += ["--model.init_args.init_from=null", *(f"--model.init_args.{size}" for size in NARROW)]
    return [
        "fit", "--config", str(experiment), "--ckpt_path", "auto", f"--vars.root={root}", f"--vars.name={stage}",
        f"--vars.seed={seed}", f"--vars.steps={steps}", f"--vars.val_every={VALIDATE_EVERY}",
        f"--data.init_args.samples_per_epoch={2 * EPOCH}", *data, "--trainer.log_every_n_steps=1",
        "--model.init_args.write_streams=false",
        f"--trainer.callbacks=[{', '.join(callbacks)}]",
    ]  # fmt: skip


class Outcome(NamedTuple):
    """Of one stage: the kill points that were reached, and what differs from the undisturbed run (nothing, if well)."""

    killed: list[str]
    missed: list[str]
    differences: list[str]


def try_stage(
    stage: str, reference: Path, killed: Path, rng: random.Random, seconds: float, limit: int | None = None
) -> Outcome:
    """Kill a stage at its points, one after the other, and compare. Both roots hold the stages that it needs.

    `seconds` is what the undisturbed run took: a kill from outside comes somewhere within it.
    """
    log = killed / f"{stage}.log"
    reached, missed = [], []
    for at, step in STAGES[stage].kills[:limit]:
        argv = words(stage, killed, kill=(at, step))
        if at == "outside":
            code = wait(start(argv, log), seconds=rng.uniform(0.4, 0.8) * seconds)
        else:
            code = run(argv, log)
        point = f"{at} {step}" if at != "outside" else "any moment"
        # `saving` is ended by the kernel, at half of the file; an outside kill may come when all is done.
        expected = -signal.SIGXFSZ if at == "saving" else -signal.SIGKILL
        (reached if code == expected else missed).append(point if code == expected else f"{point}: exit {code}")
    code = run(words(stage, killed), log)
    if code:
        return Outcome(reached, missed, [f"the last resume ended with exit code {code}, see {log}"])
    return Outcome(reached, missed, differences(reference / stage, killed / stage))


# ---------------------------------------------------------------------------------------------------- comparing runs


def differences(one: Path, other: Path) -> list[str]:
    """What two run folders do not have in common, to the last bit; times and machine records aside."""
    import torch

    found = []
    saved = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, other)]
    for checkpoint in saved:
        del checkpoint["last_checkpoint"]  # names of event files
    found += [f"checkpoint {where}" for where in _unequal(*saved)]
    found += [f"curve {point}" for point in _unequal_curves(curves(one), curves(other))]
    files = [
        {str(p.relative_to(run)) for p in run.rglob("*") if p.suffix in RECORDS and p.name not in SKIPPED}
        for run in (one, other)
    ]
    found += [f"file {name} is in one only" for name in files[0] ^ files[1]]
    same = sorted(files[0] & files[1])
    found += [f"file {name}" for name in same if (one / name).read_bytes() != (other / name).read_bytes()]
    return found


RECORDS = {".png", ".csv", ".json"}
SKIPPED = {"run.json"}  # says when and how the run was started


def _unequal(one: Any, other: Any, where: str = "") -> list[str]:
    import torch

    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [where]
    if isinstance(one, dict) and isinstance(other, dict):
        keys = dict.fromkeys([*one, *other])
        return [
            line
            for key in keys
            for line in (
                _unequal(one[key], other[key], f"{where}/{key}") if key in one and key in other else [f"{where}/{key}"]
            )
        ]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [line for i, pair in enumerate(zip(one, other, strict=True)) for line in _unequal(*pair, f"{where}/{i}")]
    return [] if type(one) is type(other) and one == other else [f"{where}: {one!r}, {other!r}"[:200]]


def curves(run: Path) -> Counter:
    """How often each point (tag, step, value's bytes) stands in a run's event files, read without any tidying up."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    points = Counter()
    for path in sorted(run.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name in ("hparams", "custom_scalars"):
                    continue  # declarations, which each start repeats
                content = value.tensor.float_val or value.tensor.string_val
                raw = b"".join(x if isinstance(x, bytes) else struct.pack("f", x) for x in content)
                points[value.tag, event.step, raw or value.tensor.tensor_content] += 1
    return points


def _unequal_curves(one: Counter, other: Counter) -> list[str]:
    lines = [f"{tag} at step {step} comes twice" for (tag, step, _), n in other.items() if n > 1]
    only = {(tag, step) for tag, step, _ in one.keys() ^ other.keys()}
    return lines + [f"{tag} at step {step}" for tag, step in sorted(only)]


# ---------------------------------------------------------------------------------------------------- the whole trial


def with_needs(stages: list[str]) -> list[str]:
    """The stages and those that they start from, in order."""
    wanted = set(stages)
    for stage in reversed(STAGES):
        if stage in wanted:
            wanted |= set(STAGES[stage].needs)
    return [stage for stage in STAGES if stage in wanted]


def trial(folder: Path, stages: list[str], limit: int | None, seed: int = 0) -> dict[str, Outcome]:
    """Train the stages undisturbed, then with kills; what came of each."""
    rng = random.Random(seed)
    outcomes = {}
    for stage in with_needs(stages):
        began = time.monotonic()
        reference = folder / "undisturbed"
        code = run(words(stage, reference), reference / f"{stage}.log")
        if code:
            raise SystemExit(f"the undisturbed run of {stage} ended with exit code {code}:\n"
                             + (reference / f"{stage}.log").read_text()[-2000:])  # fmt: skip
        if stage in stages:
            took = time.monotonic() - began
            outcomes[stage] = try_stage(stage, reference, folder / "killed", rng, took, limit)
            verdict = "equal" if not outcomes[stage].differences else "DIFFERENT"
        else:
            code = run(words(stage, folder / "killed"), folder / "killed" / f"{stage}.log")
            verdict = f"trained for the stages after it (exit {code})"
        print(f"{stage}: {verdict}, {time.monotonic() - began:.0f} s", flush=True)
        if stage in stages:
            for line in [*outcomes[stage].missed, *outcomes[stage].differences[:10]]:
                print(f"  {line}", flush=True)
    return outcomes
