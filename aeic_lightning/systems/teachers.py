"""The teacher of a system, as a part of it: frozen, trained beside the student, or the student's moving average."""

import contextlib
import copy
import hashlib
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn

from aeic_lightning.checkpoints.checkpoint import load_aeic
from aeic_lightning.checkpoints.weights import WEIGHTS
from aeic_lightning.errors import UserError
from aeic_lightning.files import locate, write_whole
from aeic_lightning.losses.adversarial import Adversarial
from aeic_lightning.losses.objective import Objective
from aeic_lightning.losses.tap_term import TapTerm
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.base import CompressionModel
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import OneStepDecoder
from aeic_lightning.models.frozen import Frozen, read_state_dict
from aeic_lightning.models.layers import are_networks_in_bfloat16
from aeic_lightning.systems import optimization as settings
from aeic_lightning.systems.averaging import average_in, running_statistics


class Teacher:
    """What a system's terms compare its model with. It puts its weights, if a checkpoint has them, on the system."""

    replayable = True
    """Whether all that it computes stays on the GPU (`optimization.cuda_graph`)."""
    cached = False
    """Whether it may leave out a pass."""

    def join(self, system: Any) -> None:
        """Called once, when the system has its model and its objective; binds the objective."""
        raise NotImplementedError

    def taps(self, x: Tensor, level: Tensor | None = None) -> dict[str, Tensor]:
        """What the terms read, by name, for images (B, 3, H, W) at the student's rate levels (B,)."""
        raise NotImplementedError

    @property
    def trained(self) -> list[nn.Parameter]:
        """Parameters that the system's optimizer trains beside the model's."""
        return []

    @property
    def decoders(self) -> list[OneStepDecoder]:
        """Those that a training step runs."""
        return []

    def started(self) -> None:
        """Called when the model has the weights that a new run starts from."""

    def updated(self, step: int) -> None:
        """Called after `step` updates."""


class FrozenTeacher(Teacher):
    """A trained model that stays as it is: no gradients, evaluation mode, in no checkpoint.

    Args:
        path: its checkpoint.
        share_base: where student and teacher have a pretrained base, hold it once, with an adapter for each.
        cache: folder in which its taps are kept, for crops that come again, or a data set of them (`TapCache`).
    """

    def __init__(self, path: str, share_base: bool = True, cache: str | None = None) -> None:
        self.path, self.share_base, self.folder = path, share_base, cache

    def join(self, system: Any) -> None:
        self.system, student = system, cast(AEIC, system.model)
        ours = student.decoder
        self.model = load_aeic(self.path, "teacher", base=ours.config.pretrained)
        theirs = self.model.decoder
        system.teacher = Frozen(self.model)
        if self.share_base and ours.config.pretrained and theirs.config.pretrained:
            # After the teacher was frozen as a whole: from now on its base has a part that is trained.
            ours.share_base(theirs, "student")
        check_levels(student, self.model, self.path)
        system.objective.bind(student, self.model)
        names = system.objective.teacher_taps
        check_read(names)
        self.cache = TapCache(self.folder, self.path, set(names), self._data) if self.folder else None
        self.cached, self.replayable = self.cache is not None, self.cache is None

    @property
    def decoders(self) -> list[OneStepDecoder]:
        return [self.model.decoder]

    def taps(self, x: Tensor, level: Tensor | None = None) -> dict[str, Tensor]:
        if self.cache is None:
            return self.compute(x, level)
        taps, share = self.cache.taps(x, self.compute, level)
        self.system.log("train/distill/cached", share)
        return taps

    def _data(self) -> dict[str, Any]:
        """What the crops of a run come from, for the cache's manifest."""
        data = None
        with contextlib.suppress(RuntimeError):  # of a system without a trainer
            data = self.system.trainer.datamodule
        known = {name: getattr(data, name, None) for name in ("crop_size", "seed")}
        images = getattr(data, "train_images", None)
        known |= {"images": None if images is None else len(images)}
        return {name: value for name, value in known.items() if value is not None}

    @torch.no_grad()
    def compute(self, x: Tensor, level: Tensor | None = None) -> dict[str, Tensor]:
        """The taps, of a pass that goes no further than needed."""
        return self.model.compute_taps(x, self.system.objective.teacher_taps, level)


class TrainedTeacher(Teacher):
    """A model of its own codec that learns in the same step, from the same crops, by its own objective.

    "Deep Mutual Learning" (Zhang et al. 2018), one way: the student's terms compare its taps with the teacher's of the
    same step, which pass no gradient. One optimizer trains both; the gradient of each is clipped by itself.

    Args:
        codec: sizes of its codec; its decoder has the student's sizes.
        objective: its own terms; default: the student's without those that compare taps and without the adversary.
        students: the student's objective.
    """

    replayable = False  # it has losses to log

    def __init__(self, codec: CodecConfig, objective: dict[str, Any] | None, students: dict[str, Any]) -> None:
        self.codec, self.terms, self.students = codec, objective, students

    def join(self, system: Any) -> None:
        self.system, student = system, cast(AEIC, system.model)
        refuse_adapters(student)
        left_out = {n for n, term in system.objective.terms.items() if isinstance(term, TapTerm | Adversarial)}
        own = {name: value for name, value in self.students.items() if name not in left_out}
        self.model = AEIC(self.codec, student.decoder.config).to(memory_format=torch.channels_last)
        self.objective = Objective(own if self.terms is None else self.terms)
        system.teacher, system.teacher_objective = self.model, self.objective
        self.objective.bind(self.model)
        if self.objective.adversary:
            raise UserError("distillation: the teacher has no adversary; give a teacher_objective without it")
        bind_beside(system, self.model)

    @property
    def trained(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def taps(self, x: Tensor, level: Tensor | None = None) -> dict[str, Tensor]:
        """The taps; its loss and its gradient come with them."""
        system, names = self.system, self.system.objective.teacher_taps
        declared = {tap.name for tap in self.model.taps}
        output = self.model(x, level, [name for name in names if name not in declared])
        loss = self.objective({"image": x}, output, None, system.global_step)
        system.manual_backward(loss.total / system.optimization.accumulate)
        terms = {f"teacher/{name}": value for name, value in ({"loss": loss.total} | loss.terms).items()}
        system.guard.see(terms, [])
        system.log_at_step("train", terms)
        return {name: output.taps[name].detach() for name in names}

    def updated(self, step: int) -> None:
        if step % settings.QUANTILE_INTERVAL == 0:
            self.model.prior.update_quantiles()


class AveragedTeacher(Teacher):
    """The moving average of the student's own weights ("Mean teachers", Tarvainen and Valpola 2017).

    Args:
        decay: share of the average that a step keeps.
    """

    replayable = False  # it has weights of its own to average

    def __init__(self, decay: float = 0.99) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"distillation: teacher_decay must be 0 or more and below 1, not {decay}")
        self.decay = decay

    def join(self, system: Any) -> None:
        self.system, self.student = system, cast(AEIC, system.model)
        refuse_adapters(self.student)
        self.statistics = running_statistics(self.student)
        self.model = copy.deepcopy(self.student).requires_grad_(False)
        system.teacher = self.model
        bind_beside(system, self.model)

    def started(self) -> None:
        self.model.load_state_dict(self.student.state_dict())

    @torch.no_grad()
    def taps(self, x: Tensor, level: Tensor | None = None) -> dict[str, Tensor]:
        return self.model.eval().compute_taps(x, self.system.objective.teacher_taps, level)

    @torch.no_grad()
    def updated(self, step: int) -> None:
        ours, theirs = (
            [*model.parameters(), *map(model.get_buffer, self.statistics)] for model in (self.student, self.model)
        )
        average_in(theirs, ours, self.decay, step)
        averaged = {id(tensor) for tensor in theirs}
        for buffer, own in zip(self.model.buffers(), self.student.buffers(), strict=True):
            if id(buffer) not in averaged:
                buffer.copy_(own)


def bind_beside(system: Any, teacher: AEIC) -> None:
    """Bind the student's objective to a teacher of the same run."""
    if teacher.rate_levels != system.model.rate_levels:
        raise UserError("distillation: give the teacher's codec the student's rate_levels")
    system.objective.bind(system.model, teacher)
    check_read(system.objective.teacher_taps, "TeacherSystem")


def refuse_adapters(student: AEIC) -> None:
    """Raise UserError for a student whose decoder is an adapter over a pretrained base."""
    if student.decoder.config.pretrained:
        raise UserError(
            "distillation: a pretrained base is trained by adapters, which online distillation does not share yet; "
            "train the teacher first, and the student with DistillationSystem"
        )


def check_levels(student: CompressionModel, teacher: CompressionModel, path: str) -> None:
    """Raise UserError where the teacher at `path` has other rate levels than its student."""
    if teacher.rate_levels != student.rate_levels:
        raise UserError(
            f"distillation: the teacher {path} has {teacher.rate_levels} rate levels, the student "
            f"{student.rate_levels}; give the student's codec the teacher's rate_levels"
        )


def check_read(teacher_taps: Collection[str], otherwise: str = "StudentSystem") -> None:
    """Raise UserError where no term reads the teacher; `otherwise` is the system for that."""
    if not teacher_taps:
        raise UserError(f"distillation: no term reads the teacher; give L_enc or L_dec, or use {otherwise}")


# ---------------------------------------------------------------------- taps on disk


MANIFEST, FORMAT = "manifest.json", "aeic_lightning taps 1"


class TapCache:
    """Taps on disk, one file an image, found again by the image's pixels.

    Since the pixels are the key, a cached tap is right whatever the data module does; it is of use only where the same
    crops come back. Random crops do not: cut the images to the crop size beforehand, so that each has one crop and at
    most four flips. The values are those of the teacher's pass, in its precision.

    Each teacher and choice of taps has a sub-folder of its own, with a `manifest.json`: the teacher's digest, the taps,
    and what the crops came from. It is a data set: it may be copied to another machine, and where it is named itself,
    taps are read from it and none are added.

    Args:
        folder: where the files go, which runs may share; or such a data set.
        teacher: the teacher's checkpoint; another one never finds this one's taps.
        names: the taps to keep.
        data: what the crops come from, for the manifest; asked when it is written.

    Raises UserError for a data set of another teacher, or without one of the taps.
    """

    def __init__(
        self, folder: str | Path, teacher: str | Path, names: set[str], data: Callable[[], dict[str, Any]] = dict
    ) -> None:
        path = locate(teacher)
        with (path / WEIGHTS if path.is_dir() else path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        taps = hashlib.sha256(" ".join(sorted(names)).encode()).hexdigest()
        self.names, self.data = names, data
        self.manifest: dict[str, Any] = {"format": FORMAT, "teacher": digest, "taps": sorted(names)}
        self.is_data_set = (Path(folder) / MANIFEST).is_file()
        self.folder = Path(folder) if self.is_data_set else Path(folder) / f"{digest[:16]}-{taps[:8]}"
        if self.is_data_set:
            self.manifest = self._read(teacher)

    def _read(self, teacher: str | Path) -> dict[str, Any]:
        """The manifest of the data set, if it fits."""
        try:
            theirs = json.loads((self.folder / MANIFEST).read_text())
        except ValueError:
            theirs = None
        if not isinstance(theirs, dict) or theirs.get("format") != FORMAT:
            raise UserError(f"teacher_cache: {self.folder / MANIFEST} is no manifest of taps; name another folder")
        if theirs["teacher"] != self.manifest["teacher"]:
            raise UserError(
                f"teacher_cache: {self.folder} has the taps of another teacher (sha256 {theirs['teacher'][:12]}) than "
                f"{teacher} ({self.manifest['teacher'][:12]}); give the run that teacher, or another folder"
            )
        if lacking := sorted(self.names - set(theirs["taps"])):
            raise UserError(
                f"teacher_cache: {self.folder} lacks the tap {lacking[0]}; it has {', '.join(theirs['taps'])}: leave "
                "the others out of the objective, or give another folder"
            )
        return theirs

    def taps(
        self, x: Tensor, compute: Callable[[Tensor, Tensor | None], dict[str, Tensor]], level: Tensor | None = None
    ) -> tuple[dict[str, Tensor], float]:
        """The taps of images (B, 3, H, W) at rate levels (B,), and the share that was there already.

        `compute` is called on the others, and what it gives is kept. Raises UserError for an image that a data set
        does not have.
        """
        low = torch.is_autocast_enabled(x.device.type)
        precision = str(torch.get_autocast_dtype(x.device.type) if low else x.dtype).removeprefix("torch.")
        precision = "networks_in_bfloat16" if are_networks_in_bfloat16() else precision
        levels = [""] * len(x) if level is None else [f"-{value:g}" for value in level.tolist()]
        files = [
            self.folder / precision / f"{_digest(image)}{at}.safetensors" for image, at in zip(x, levels, strict=True)
        ]
        missing = [i for i, file in enumerate(files) if not file.is_file()]
        if missing and self.is_data_set:
            made = ", ".join(f"{name} {value}" for name, value in (self.manifest.get("data") or {}).items())
            raise UserError(
                f"teacher_cache: {self.folder} lacks a crop of this run, at its rate level, in {precision}; it was "
                f"made with {made or 'other crops'}: give the run the same, or name a folder without {MANIFEST} to fill"
            )
        if missing:
            computed = compute(x[missing], None if level is None else level[missing])
            for row, i in enumerate(missing):
                write_whole(files[i], save({name: computed[name][row].cpu().contiguous() for name in self.names}))
            if not (self.folder / MANIFEST).is_file():
                write_whole(self.folder / MANIFEST, json.dumps(self.manifest | {"data": self.data()}, indent=1) + "\n")
        rows = [read_state_dict(file) for file in files]
        taps = {name: torch.stack([row[name] for row in rows]).to(x.device) for name in self.names}
        return taps, 1 - len(missing) / len(files)


def _digest(image: Tensor) -> str:
    return hashlib.blake2b(f"{tuple(image.shape)}".encode() + image.cpu().numpy().tobytes(), digest_size=16).hexdigest()
