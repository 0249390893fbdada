"""Bad input of many kinds, for every command: each must be one clear line and exit code 2.

All in one process, through the command line's own `main`. A checkpoint of two steps is trained first.
"""

import contextlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tests.robustness.hostile import Malicious, bomb
from tests.robustness.runs import ROOT

TEACHER = str(ROOT / "experiments" / "tiny" / "teacher_stage1.yaml")
CHEAP = [
    "--model.init_args.objective.lpips=0", "--model.init_args.objective.semantic=0", "--vars.steps=1",
    "--vars.val_every=1",
    "--model.init_args.write_streams=false", "--trainer.logger=false",
    "--trainer.callbacks=[{class_path: callbacks.checkpoint.LastCheckpoint}]",
]  # fmt: skip


class Folder:
    """Good and bad files in one folder, made once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.proof = root / "something_ran"
        rng = np.random.default_rng(0)
        for name in ("good/a", "good/b", "good/c", "val/v", "one/a"):
            self.image(f"{name}.png", rng.integers(0, 256, (130, 140, 3), np.uint8))
        png, jpeg = (root / "good/a.png").read_bytes(), io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (130, 140, 3), np.uint8)).save(jpeg, "JPEG")
        icon = io.BytesIO()  # a format of Pillow's that no photograph comes in
        Image.new("RGB", (130, 130)).save(icon, "ICO")
        broken = {
            "truncated.png": png[: len(png) // 2],
            "truncated.jpg": jpeg.getvalue()[:2000],
            "empty.png": b"",
            "text.png": b"not an image\n" * 20,
            "icon.png": icon.getvalue(),
            "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nquit\n",
            "bomb.png": bomb(60_000, 60_000),
            "large.png": bomb(9_000, 9_000),
            "header.png": png[:12] + b"\xff" * 40 + png[52:],
        }
        for name, data in broken.items():
            self.file(f"bad/{Path(name).stem}_{name[-3:]}/{name}", data)
        (root / "bad/nan_tif").mkdir(parents=True)
        Image.fromarray(np.full((130, 130), np.nan, np.float32)).save(root / "bad/nan_tif/nan.tif")
        (root / "bad/link_png").mkdir()
        (root / "bad/link_png/link.png").symlink_to(root / "nowhere.png")
        (root / "bad/pipe_png").mkdir()
        os.mkfifo(root / "bad/pipe_png/pipe.png")
        for folder in (root / "bad").iterdir():
            shutil.copy(root / "good/a.png", folder / "good.png")
        self.file("all/truncated.png", png[: len(png) // 2])
        (root / "none").mkdir()
        self.file("words/readme.txt", b"hello")
        self.file("text.ckpt", b"not a checkpoint")
        self.file("empty.ckpt", b"")
        self.file("malicious.ckpt", pickle.dumps({"state_dict": {}, "model_config": {}, "x": Malicious(self.proof)}))
        self.file("broken.yaml", b"model: [1, 2\n")
        self.file("list.yaml", b"- a\n- b\n")
        self.file("include.yaml", b"include: [gone.yaml]\n")
        self.file("itself.yaml", b"include: [itself.yaml]\n")
        self.file("text.aeic", b"not a stream at all")
        self.file("empty.aeic", b"")
        self.file("text.json", b"{not json")
        self.file("other.json", b'{"a": 1}')

    def file(self, name: str, data: bytes) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_bytes(data)

    def image(self, name: str, pixels: np.ndarray) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(self.root / name)

    def train(self) -> None:
        """The checkpoint, damaged ones made of it, and a stream."""
        import torch

        quietly(self.fit("run", "good"))
        good = self.root / "runs/run/checkpoints/last.ckpt"
        shutil.copy(good, self.root / "good.ckpt")
        data = good.read_bytes()
        self.file("truncated.ckpt", data[: len(data) // 2])
        checkpoint = torch.load(good, weights_only=True)
        torch.save({"weights": checkpoint["state_dict"]}, self.root / "foreign.ckpt")
        torch.save({"state_dict": {}, "model_config": {}, "x": Malicious(self.proof)}, self.root / "malicious_zip.ckpt")
        quietly(
            ["compress", f"{self.root}/good/a.png", "--checkpoint", f"{self.root}/good.ckpt", "-o", f"{self.root}/s"]
        )
        stream = (self.root / "s/a.aeic").read_bytes()
        self.file("truncated.aeic", stream[: len(stream) // 2])
        self.file("flipped.aeic", stream[:-3] + bytes([stream[-3] ^ 8]) + stream[-2:])
        self.file("long.aeic", stream + b"more")

    def fit(self, name: str, train: str | None, *words: str) -> list[str]:
        """A run of one step on a folder of images; without a folder, on the sample photographs."""
        data = ["--data.init_args.batch_size=2", "--data.init_args.val_max_size=[64,64]"]
        if train is not None:
            data = [f"--data={{class_path: datamodules.ImageFolder, init_args: {{train_dir: {self.root}/{train}, "
                    f"val_dir: {self.root}/val, crop_size: 128, batch_size: 2}}}}"]  # fmt: skip
        return [
            "fit",
            "--config",
            TEACHER,
            f"--vars.root={self.root}/runs",
            f"--vars.name={name}",
            *CHEAP,
            *data,
            *words,
        ]


class Case(NamedTuple):
    """What is wrong, the words of the command line, and what the one line must say."""

    name: str
    words: Callable[[Folder], list[str]]
    says: str


def _images() -> list[Case]:
    """Broken images in a training folder."""
    said = {
        "truncated_png": "cut short or damaged", "truncated_jpg": "cut short or damaged", "empty_png": "file is empty",
        "text_png": "not a known image", "icon_png": "not a known image", "script_jpg": "not a known image",
        "bomb_png": "refused", "large_png": "more than 80000000 pixels", "header_png": "not a known image",
        "nan_tif": "outside [0, 1]", "link_png": "No such file", "pipe_png": "it is no file",
    }  # fmt: skip
    cases = [
        Case(f"training image: {kind}", lambda f, kind=kind: f.fit("images", f"bad/{kind}"), says)
        for kind, says in said.items()
    ]
    return [
        *cases,
        Case("validation image: cut short",
             lambda f: f.fit("images", "good", f"--data.init_args.val_dir={f.root}/bad/truncated_png"), "cut short"),
        Case("every training image broken, on_error skip",
             lambda f: f.fit("images", "all", "--data.init_args.on_error=skip"), "none of the 1 training images"),
        Case("training folder missing", lambda f: f.fit("images", "nowhere"), "there is no folder"),
        Case("training folder empty", lambda f: f.fit("images", "none"), "no image in"),
        Case("training folder without images", lambda f: f.fit("images", "words"), "no image in"),
        Case("fewer images than the batch",
             lambda f: f.fit("images", "one", "--data.init_args.samples_per_epoch=null"), "holds no batch of 2"),
        Case("training and validation share an image",
             lambda f: f.fit("images", "good", f"--data.init_args.val_dir={f.root}/good"), "keep them apart"),
        Case("val_count takes all",
             lambda f: f.fit("images", "good", "--data.init_args.val_dir=null", "--data.init_args.val_count=9"),
             "has only 3 images"),
    ]  # fmt: skip


def _settings() -> list[Case]:
    """Configs that cannot work, and names that are nearly right."""
    model, data = "--model.init_args.", "--data.init_args."
    words = {
        "no such config file": ([], "no config file"),
        "loss misspelt": ([f"{model}objective.rat=3"], "did you mean rate"),
        "codec misspelt": ([f"{model}codec.width=[8]"], "did you mean widths"),
        "nested setting misspelt": ([f"{model}decoder.unet.width=[8]"], "did you mean widths"),
        "optimization misspelt": ([f"{model}optimization.warmup=3"], "did you mean warmup_steps"),
        "data misspelt": ([f"{data}crop_siz=128"], "did you mean crop_size"),
        "trainer misspelt": (["--trainer.max_step=3"], "did you mean max_steps"),
        "section misspelt": (["--modle.x=1"], "did you mean model"),
        "var misspelt": (["--vars.lamda=3"], "did you mean lambda"),
        "class misspelt": (["--model.class_path=aeic_lightning.systems.TeacherSytem"], "did you mean TeacherSystem"),
        "module misspelt": (["--data.class_path=datamodule.ImageFolder"], "did you mean datamodules"),
        "callback misspelt": (
            ["--trainer.callbacks=[{class_path: callbacks.checkpoint.LastCheckpoin}]"], "did you mean LastCheckpoint"
        ),
        "callback's setting misspelt": (
            ["--trainer.callbacks=[{class_path: callbacks.checkpoint.LastCheckpoint, init_args: {every_step: 3}}]"],
            "did you mean every_n_steps",
        ),
        "a word for a number": ([f"{data}batch_size=many"], "data.init_args.batch_size: Expected"),
        "a choice that is none": ([f"{model}optimization.on_nonfinite=halt"], "'stop', 'skip'"),
        "a stray word": (["stray"], "unexpected argument 'stray'"),
        "crop no multiple of 128": ([f"{data}crop_size=100"], "multiple of 128"),
        "crop of 0": ([f"{data}crop_size=0"], "multiple of 128"),
        "batch of 0": ([f"{data}batch_size=0"], "at least 1"),
        "negative workers": ([f"{data}num_workers=-1"], "neither may be negative"),
        "val_max_size of one number": ([f"{data}val_max_size=[64]"], "must be [height, width]"),
        "zoom below 1": ([f"{data}max_zoom_out=0.5"], "at least 1"),
        "widths and depths of other lengths": ([f"{model}codec.widths=[16,32]"], "2 widths but 5 depths"),
        "width no multiple of 4": ([f"{model}codec.widths=[32,32,48,63,96]"], "multiple of 4"),
        "M no multiple of 8": ([f"{model}codec.widths=[32,32,48,64,100]"], "must be a multiple of 8"),
        "synthesis too short": (
            [f"{model}codec.synthesis_widths=[64]", f"{model}codec.synthesis_depths=[1]"], "do not end at stride 8"
        ),
        "U-Net width not divided by its heads": ([f"{model}decoder.unet.heads=[3,2,2,2]"], "heads"),
        "U-Net width not divided by its groups": ([f"{model}decoder.unet.groups=7"], "groups"),
        "no learning rate at step 0": ([f"{model}optimization.learning_rates=[[5,1e-3]]"], "from step 0 on"),
        "accumulate 0": ([f"{model}optimization.accumulate=0"], "at least 1"),
        "impossible label": ([f"{model}optimization.real_label=0.2"], "real_label"),
        "checkpoints every 0 steps": (
            ["--trainer.callbacks=[{class_path: callbacks.checkpoint.LastCheckpoint, init_args: {every_n_steps: 0}}]"],
            "starts at 1",
        ),
        "no such accelerator": (["--trainer.accelerator=gpuu"], "gpuu"),
        "no GPU here": (["--trainer.accelerator=cuda"], "accelerator is not available"),
    }  # fmt: skip
    cases = [
        Case(f"config: {name}", lambda f, extra=extra: f.fit("settings", None, *extra), says)
        for name, (extra, says) in words.items()
        if extra
    ]
    for file, says in {"gone": "no config file", "broken": "no YAML", "list": "no settings",
                       "include": "which", "itself": "includes itself"}.items():  # fmt: skip
        cases.append(Case(f"config file: {file}", lambda f, x=file: ["fit", "--config", f"{f.root}/{x}.yaml"], says))
    return cases


def in_root(name: str) -> Callable[[Folder], str]:
    """The path of a file, once the folder is known."""
    return lambda f: f"{f.root}/{name}"


def _checkpoints() -> list[Case]:
    """Checkpoints that are damaged, foreign, of another model or malicious, wherever one is read."""
    said = {
        "nowhere": "no file", "text": "cannot be read", "empty": "cannot be read", "truncated": "cannot be read",
        "malicious": "cannot be read", "malicious_zip": "cannot be read", "foreign": "not a checkpoint of",
    }  # fmt: skip
    cases = []
    for kind, says in said.items():
        here = in_root(f"{kind}.ckpt")
        cases += [
            Case(f"--ckpt_path: {kind}", lambda f, x=here: f.fit("ckpt", "good", "--ckpt_path", x(f)), says),
            Case(f"init_from: {kind}",
                 lambda f, x=here: f.fit("ckpt", "good", f"--model.init_args.init_from={x(f)}"), says),
            Case(f"compress --checkpoint: {kind}",
                 lambda f, x=here: ["compress", f"{f.root}/good", "--checkpoint", x(f), "-o", f"{f.root}/out"], says),
            Case(f"decompress --checkpoint: {kind}",
                 lambda f, x=here: ["decompress", f"{f.root}/s", "--checkpoint", x(f), "-o", f"{f.root}/out"], says),
        ]  # fmt: skip
    for kind in ("malicious", "malicious_zip", "truncated"):
        here = in_root(f"{kind}.ckpt")
        cases += [
            Case(f"teacher: {kind}",
                 lambda f, x=here: ["fit", "--config", str(ROOT / "experiments/tiny/student_enc.yaml"),
                                    f"--vars.root={f.root}/runs", "--model.init_args.receiver_from=null",
                                    f"--model.init_args.teacher={x(f)}"], "cannot be read"),
            Case(f"evaluate --checkpoint: {kind}",
                 lambda f, x=here: ["evaluate", "--checkpoint", x(f), "--images", f"{f.root}/good",
                                    "-o", f"{f.root}/out/r.json"], "cannot be read"),
            Case(f"classify --checkpoint: {kind}",
                 lambda f, x=here: ["classify", f"{f.root}/s/a.aeic", "--checkpoint", x(f)], "cannot be read"),
            Case(f"verify --checkpoint: {kind}",
                 lambda f, x=here: ["verify", f"{f.root}/good/a.png", "--checkpoint", x(f)], "cannot be read"),
            Case(f"export --checkpoint: {kind}",
                 lambda f, x=here: ["export", "--checkpoint", x(f), "-o", f"{f.root}/out/e"], "cannot be read"),
            Case(f"bench --checkpoint: {kind}", lambda f, x=here: ["bench", "--checkpoint", x(f), "--sizes", "64x64"],
                 "cannot be read"),
            Case(f"import-released: {kind}",
                 lambda f, x=here: ["import-released", x(f), "-o", f"{f.root}/out/i.ckpt"], kind),
        ]  # fmt: skip
    good = "--ckpt_path"
    return [
        *cases,
        Case("--ckpt_path: of another width",
             lambda f: f.fit("ckpt", "good", good, f"{f.root}/good.ckpt",
                             "--model.init_args.codec.widths=[16,32,48,64,96]"), "the config asks for"),
        Case("--ckpt_path: without the discriminator",
             lambda f: f.fit("ckpt", "good", good, f"{f.root}/good.ckpt",
                             "--model.init_args.objective.adversarial=0.1"),
             "trained with another model"),
        Case("init_from: of another width",
             lambda f: f.fit("ckpt", "good", f"--model.init_args.init_from={f.root}/good.ckpt",
                             "--model.init_args.codec.widths=[16,32,48,64,96]"), "the config asks for"),
        Case("--ckpt_path last without one", lambda f: f.fit("never", "good", good, "last"), "leave --ckpt_path out"),
        Case("a folder that holds a run", lambda f: f.fit("run", "good"), "already holds a run"),
        Case("validate without a checkpoint", lambda f: ["validate", *f.fit("never", "good")[1:]], "add --ckpt_path"),
    ]  # fmt: skip


def _files() -> list[Case]:
    """Images, streams and results of the commands that are no training."""

    def compress(f: Folder, *images: str) -> list[str]:
        return [
            "compress",
            *(f"{f.root}/{x}" for x in images),
            "--checkpoint",
            f"{f.root}/good.ckpt",
            "-o",
            f"{f.root}/o",
        ]

    def decompress(f: Folder, stream: str) -> list[str]:
        return ["decompress", f"{f.root}/{stream}", "--checkpoint", f"{f.root}/good.ckpt", "-o", f"{f.root}/o"]

    return [
        Case("compress: no such image", lambda f: compress(f, "nowhere.png"), "no file or folder"),
        Case("compress: empty folder", lambda f: compress(f, "none"), "no file to read"),
        Case("compress: cut short", lambda f: compress(f, "bad/truncated_png/truncated.png"), "cut short"),
        Case("compress: bomb", lambda f: compress(f, "bad/bomb_png/bomb.png"), "refused"),
        Case("compress: text", lambda f: compress(f, "words/readme.txt"), "not a known image"),
        Case("compress: two images, one target", lambda f: compress(f, "good/a.png", "one/a.png"), "rename one"),
        Case("compress: target exists", lambda f: [*compress(f, "good/a.png")[:-1], f"{f.root}/s"], "exists"),
        Case("decompress: no such stream", lambda f: decompress(f, "nowhere.aeic"), "no file or folder"),
        Case("decompress: empty", lambda f: decompress(f, "empty.aeic"), "empty.aeic"),
        Case("decompress: text", lambda f: decompress(f, "text.aeic"), "text.aeic"),
        Case("decompress: cut short", lambda f: decompress(f, "truncated.aeic"), "truncated.aeic"),
        Case("decompress: a bit flipped", lambda f: decompress(f, "flipped.aeic"), "flipped.aeic"),
        Case("decompress: bytes appended", lambda f: decompress(f, "long.aeic"), "long.aeic"),
        Case("classify: a model without a classifier",
             lambda f: ["classify", f"{f.root}/s/a.aeic", "--checkpoint", f"{f.root}/good.ckpt"], "classif"),
        Case("evaluate: empty folder",
             lambda f: ["evaluate", "--checkpoint", f"{f.root}/good.ckpt", "--images", f"{f.root}/none", "-o",
                        f"{f.root}/o/r.json"], "no image"),
        Case("compare: no run", lambda f: ["compare", f"{f.root}/none", "-o", f"{f.root}/o"], "none"),
        Case("report: no result", lambda f: ["report", f"{f.root}/none", "-o", f"{f.root}/o/r.html"], "none"),
        Case("report: broken JSON",
             lambda f: ["report", f"{f.root}/text.json", "-o", f"{f.root}/o/r.html"], "text.json"),
        Case("bd-rate: another JSON",
             lambda f: ["bd-rate", f"{f.root}/other.json", "--test", f"{f.root}/other.json"], "other.json"),
        Case("sweep: broken file", lambda f: ["sweep", "--config", f"{f.root}/broken.yaml"], "no YAML"),
        Case("plan: no such config", lambda f: ["plan", "--config", f"{f.root}/gone.yaml"], "no config file"),
        Case("complexity: a list for a config",
             lambda f: ["complexity", "--config", f"{f.root}/list.yaml"], "no settings"),
        Case("decompress: unknown argument",
             lambda f: [*decompress(f, "s/a.aeic"), "--chekpoint=x"], "unknown argument"),
    ]  # fmt: skip


CASES = [*_images(), *_settings(), *_checkpoints(), *_files()]


def quietly(words: list[str]) -> tuple[int, str]:
    """Exit code and standard error of one command, run in this process."""
    from aeic_lightning.cli import main

    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()), contextlib.chdir(ROOT):
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
    return code, said.getvalue()


def verdict(case: Case, folder: Folder) -> str:
    """Empty if all is well, else what is not."""
    code, said = quietly(case.words(folder))
    lines = [line for line in said.splitlines() if line.startswith(("error:", "failed:"))]
    if "Traceback" in said:
        return "a traceback"
    if folder.proof.exists():
        folder.proof.unlink()
        return "SOMETHING RAN that a file brought along"
    if code != 2 or len(lines) != 1:
        return f"exit code {code}, {len(lines)} lines: {' '.join(lines)[:300] or said[-200:]}"
    return "" if case.says in lines[0] else f"does not say {case.says!r}: {lines[0][:300]}"


def trial(root: Path) -> dict[str, str]:
    """Verdict on each case; what differs from an error of one line is printed."""
    folder = Folder(root)
    folder.train()
    verdicts = {case.name: verdict(case, folder) for case in CASES}
    for name, what in verdicts.items():
        if what:
            print(f"{name}: {what}", flush=True)
    return verdicts


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(trial(Path(scratch)), indent=1))
