"""Every experiment file runs for two steps, with its own classes and sizes, on crops of 128 pixels."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import skimage.data
import torch
from PIL import Image

from aeic_lightning import Codec
from aeic_lightning.checkpoints.checkpoint import load_model
from aeic_lightning.checkpoints.weights import read_config
from aeic_lightning.cli import main
from aeic_lightning.config import _layers, load_config
from aeic_lightning.files import locate
from aeic_lightning.losses.objective import objective_settings, read_objective
from aeic_lightning.study.results import read_result
from aeic_lightning.study.runner import run_sweep
from aeic_lightning.study.sweep_file import RECORD, Sweep, read_sweep
from benchmarks import denoiser
from datamodules import sample_photos
from tests.experiment_names import all_but_few_slow, all_experiments, names
from tests.models.decoder.test_restoration import reference, stored

ROOT = Path(__file__).parent.parent
ORDER = ["teacher_stage1", "teacher_stage2", "student_none", "student_enc", "student_enc_dec",
         "student_stage1", "student_stage2", "student_stage3"]  # fmt: skip
PARTS = {"base", "teacher", "student", "stage1", "stage2"}


def test_every_tiny_file_is_known_here():
    assert names("tiny") == set(ORDER) | PARTS


@pytest.mark.parametrize("name", all_experiments())
def test_a_run_is_read_from_five_files_at_most(name):
    """Variants of one file count as one."""
    files = {source.split(" (")[0] for source, _ in _layers([ROOT / "experiments" / f"{name}.yaml"], [])}
    assert len(files - {"command line"}) <= 5


def fit(config: str, root: Path, *settings: str) -> None:
    """Two steps of an experiment, and a validation, in root/NAME."""
    assert main(["fit", "--config", f"experiments/{config}.yaml", f"--vars.root={root}", "--vars.steps=2",
                 "--vars.val_every=2", *settings]) == 0  # fmt: skip


@pytest.fixture
def trained(made_once, monkeypatch):
    """trained(name, *settings): the run's folder, after those beside it that it starts from or learns from."""
    monkeypatch.chdir(ROOT)

    def get(config: str, *settings: str) -> Path:
        given = load_config([ROOT / "experiments" / f"{config}.yaml"], ["vars.root=BESIDE"])["model"]["init_args"]
        for path in {given.get(key) for key in ("init_from", "receiver_from", "teacher")} - {None}:
            if path.startswith("BESIDE/"):
                get(f"{config.partition('/')[0]}/{Path(path).parts[1]}", *settings)
        return made_once(f"experiments/{config}", lambda folder: fit(config, folder.parent, *settings))

    return get


@pytest.mark.parametrize("name", all_but_few_slow(ORDER, "teacher_stage1", "teacher_stage2", "student_enc_dec"))
def test_two_steps(trained, name):
    """The last validation writes every record."""
    folder = trained(f"tiny/{name}", "--data.init_args.batch_size=2",
                     "--data.init_args.crop_size=128", "--data.init_args.val_max_size=[128,192]")  # fmt: skip
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    for file in ("config.yaml", "run.json", "metrics_val.json", "rate_distortion.png", "reconstructions/chelsea.png"):
        assert (folder / file).is_file(), file


@pytest.fixture
def photos(made_once):
    """A folder of photographs, one to validate on."""

    def make(folder: Path) -> None:
        for name in ("astronaut", "chelsea", "coffee"):
            Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name}.png")

    return made_once("photos", make)


@pytest.fixture
def on_photos(photos):
    return [f"--vars.data={photos}", "--data.init_args.val_count=1", "--data.init_args.batch_size=2",
            "--data.init_args.val_max_size=[128,128]"]  # fmt: skip


SHIPPED = ["teacher_stage1", "teacher_stage2", "student_none", "student_enc", "student_enc_dec"]


def test_every_small_file_is_known_here():
    parts = {"base", "teacher", "student", "perceptual", "gpu", "realistic", "restoration"}
    assert names("small") == set(SHIPPED) | parts


@pytest.mark.parametrize("name", all_but_few_slow(SHIPPED, "teacher_stage1"))
def test_two_steps_of_the_small_size(trained, on_photos, name):
    """The training of the shipped models. A student from one of them: `test_two_steps_of_the_realistic_decoder`."""
    folder = trained(f"small/{name}", *on_photos)
    record = json.loads((folder / "run.json").read_text())
    assert len(record["data_files"]) >= 1
    for setting, digest in record["data_files"].items():
        assert record["experiment"]["settings"][f"files of {setting.replace('.init_args', '')}"] == digest[:12]
    assert json.loads((folder / "metrics_val.json").read_text())


LONG = [
    "teacher_stage1",
    "teacher_stage2",
    "student_stage1",
    "student_stage2",
    "student_again",
    "teacher_again",
    "denoiser",
]


def test_every_long_file_is_known_here():
    assert names("long") == {*LONG, "again", "base", "last", "smooth"}


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_two_steps_of_the_next_small_size(trained, on_photos, name, tmp_path):
    if name == "denoiser":
        assert denoiser.main(["small-student", "--fresh", str(tmp_path / "fresh")]) == 0
        on_photos = [*on_photos, f"--vars.start={tmp_path}/fresh"]
    small = ["--data.init_args.folder_weights=null", "--data.init_args.batch_size=1", "--data.init_args.crop_size=128"]
    folder = trained(f"long/{name}", *on_photos, *small)
    assert json.loads((folder / "metrics_val.json").read_text())


def test_two_steps_with_the_settings_for_a_gpu(tmp_path, photos, monkeypatch):
    """All of them but the GPU itself, its graph, and the code that compiled blocks would become for it."""
    monkeypatch.chdir(ROOT)
    words = ["fit", "--config", "experiments/small/teacher_stage1.yaml", "--config", "experiments/small/gpu.yaml",
             f"--vars.root={tmp_path}", "--vars.steps=2", "--vars.val_every=2", f"--vars.data={photos}",
             "--data.init_args.val_count=1", "--vars.batch=2", "--trainer.accelerator=cpu",
             "--model.init_args.optimization.compile=eager", "--data.init_args.val_max_size=[128,128]"]  # fmt: skip
    assert main(words) == 2  # the graph
    assert main([*words, "--model.init_args.optimization.cuda_graph=false"]) == 0


def test_two_steps_of_the_realistic_decoder(tmp_path, photos, monkeypatch):
    """From the shipped teacher; its folder of weights then has both decoders, and says how the second was trained."""
    monkeypatch.chdir(ROOT)
    parts = [
        word for part in ("base", "teacher", "realistic") for word in ("--config", f"experiments/small/{part}.yaml")
    ]
    words = ["fit", *parts, "--vars.start=small-teacher", f"--vars.root={tmp_path}/real", f"--vars.data={photos}",
             "--vars.steps=2", "--vars.val_every=2", "--data.init_args.val_count=1", "--data.init_args.batch_size=2",
             "--data.init_args.val_max_size=[128,128]"]  # fmt: skip
    assert main(words) == 0
    trained = tmp_path / "real" / "realistic" / "checkpoints" / "last.ckpt"
    words = ["export", "--weights", "--checkpoint", "small-teacher", "--realistic", str(trained)]
    assert main([*words, "-o", str(tmp_path / "both")]) == 0
    config = read_config(tmp_path / "both")
    assert config["fingerprint"] == read_config(locate("small-teacher"))["fingerprint"]
    assert config["realistic_objective"]["adversarial"]["backbone"] == "hed"
    assert config["card"]["realistic decoder"][0].endswith(", 2 steps")


def test_two_steps_of_the_receiver_that_ends_with_a_restoration_network(tmp_path, photos, monkeypatch):
    """From the shipped student, of which a folder of weights then holds nothing again but the new stages."""
    monkeypatch.chdir(ROOT)
    parts = [
        word for part in ("base", "student", "restoration") for word in ("--config", f"experiments/small/{part}.yaml")
    ]
    trained = stored(reference(64, 16), tmp_path)
    words = ["fit", *parts, "--vars.start=small-student", f"--vars.root={tmp_path}/small", f"--vars.data={photos}",
             "--vars.steps=2", "--vars.val_every=2", "--data.init_args.val_count=1", "--data.init_args.batch_size=2",
             "--data.init_args.val_max_size=[128,128]",
             f"--model.init_args.decoder.vae.restoration.weights={trained}"]  # fmt: skip
    assert main(words) == 0
    record = json.loads((tmp_path / "small" / "restoration" / "run.json").read_text())
    assert [entry["role"] for entry in record["started_from"]] == ["restoration", "init_from"]
    last = tmp_path / "small" / "restoration" / "checkpoints" / "last.ckpt"
    folder = tmp_path / "restored"
    assert main(["export", "--weights", "--checkpoint", str(last), "--shares", "small-student", "-o", str(folder)]) == 0
    assert (folder / "model.safetensors").stat().st_size < 2_000_000
    assert Codec.from_pretrained(folder).model.decoder.config.vae.patch == 4


TWO_STEPS = ["vars.steps=2", "vars.val_every=2", "data.init_args.batch_size=2", "data.init_args.val_max_size=[128,128]"]


@pytest.fixture
def one_photo(monkeypatch):
    """Of the sample photographs that runs are validated on: how several are pooled has tests of its own."""
    monkeypatch.setattr(sample_photos, "VAL", sample_photos.VAL[:1])


def train_here(sweep: Sweep) -> None:
    """The runs of a sweep, in this process instead of one each that imports everything anew."""
    for run in sweep.runs:
        assert main(run.command[3:]) == 0, run.name
        (run.folder / RECORD).touch()


@pytest.mark.slow
def test_the_demo(tmp_path, monkeypatch, capfd, one_photo):
    """`make demo` in two steps per student: from the shipped teacher to the table, which has the teacher's row. The
    same students and table, without their sweep: docs/tutorial.md."""
    monkeypatch.chdir(ROOT)
    settings = [f"vars.root={tmp_path}", *(f"set.{setting}" for setting in TWO_STEPS)]
    train_here(read_sweep("experiments/sweeps/demo.yaml", settings))
    words = ["sweep", "--config", "experiments/sweeps/demo.yaml"]
    assert main([*words, *(f"--{setting}" for setting in settings)]) == 0
    results = json.loads((tmp_path / "comparison" / "comparison.json").read_text())["results"]
    assert [result["name"] for result in results] == ["small-teacher", "student_none", "student_enc", "student_enc_dec"]
    costs = [result["costs"]["encoder_macs_per_pixel"]["encode"] for result in results]
    assert costs[0] > 4 * costs[1] == 4 * costs[2], "the shallow encoder, and the teacher's entropy model"
    assert {result["labels"]["target"] for result in results} == {0.1}, "files of one rate"
    assert len({tuple(result["metrics"]) for result in results}) == 1, "the same columns"
    frozen = [
        load_model(tmp_path / name / "checkpoints" / "last.ckpt").decoder
        for name in ("student_none", "student_enc_dec")
    ]
    teacher = Codec.from_pretrained("small-teacher").model.decoder
    for name, tensor in teacher.state_dict().items():
        assert all(torch.equal(decoder.state_dict()[name], tensor) for decoder in frozen), name


@pytest.mark.slow
def test_the_distillation_study(tmp_path, photos, monkeypatch, capfd):
    """Two arms for two steps: from the shipped teacher to BD-rates over rate levels, on two sets of images. A smaller
    one: tests/test_notebook.py."""
    monkeypatch.chdir(ROOT)
    test_photos = tmp_path / "test"
    test_photos.mkdir()
    Image.open(photos / "astronaut.png").crop((0, 0, 176, 176)).save(test_photos / "unseen.png")
    settings = ["report.evaluate.levels=[0, 2, 3, 4]", "report.evaluate.max_size=[170,192]"]
    settings += [f"vars.root={tmp_path}/runs", f"vars.out={tmp_path}/out"]
    settings += [f"vars.data={photos}", f"vars.kodak={test_photos}", "vars.seeds=[0]", "vars.arms=[none, enc_dec]"]
    arms = "test: {arm: enc_dec}, reference: {arm: none}"
    settings.append(f"report.claims=[{{says: L_enc and L_dec save bits, {arms}, metric: lpips_lite2}}]")
    settings.append("report.max_images=0")
    small = ["vars.steps=2", "vars.val_every=2", "data.init_args.batch_size=2", "data.init_args.val_max_size=[176,176]"]
    settings += [f"set.{setting}" for setting in [*small, "data.init_args.val_count=1"]]
    train_here(read_sweep("experiments/sweeps/distillation.yaml", settings))
    torch.set_num_threads(2)
    words = ["sweep", "--config", "experiments/sweeps/distillation.yaml", *(f"--{setting}" for setting in settings)]
    assert main(words) == 0
    assert " 0 pictures," in capfd.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert len(results) == 2 * 3 * 4  # sets, models, levels
    sizes = {}
    for result in results:
        threads = result["metric_info"]["encode_seconds"]["options"]["threads"]
        assert threads == 1, "as the sweep file says; more are slow beside other processes"
        (image,) = result["images"]
        assert (image["height"], image["width"]) == ((170, 176) if image["name"] == "unseen" else (176, 176))
        sizes.setdefault((result["labels"]["arm"], image["name"]), []).append(image["bytes"])
    assert len(sizes) == 6
    assert all(found == sorted(found) for found in sizes.values()), "a higher level has larger files"
    rows = json.loads((tmp_path / "out" / "bd_rate.json").read_text())["rows"]
    assert len(rows) == 2 * (2 + 2) * 6  # sets, curves but the reference against teacher and none, metrics
    written = sorted(tmp_path.glob("runs/*/evaluated/*.json"))
    before = [path.stat().st_mtime_ns for path in written]
    assert main(words) == 0, "what is there is kept"
    assert [path.stat().st_mtime_ns for path in written] == before
    assert len(written) == 4
    torch.set_num_threads(1)


@pytest.mark.slow
def test_two_steps_of_other_encoders_in_the_study(tmp_path, photos, monkeypatch):
    """Depth 2 and 3, and half the width, for the arm with all losses. Bound without training: study/test_binding.py."""
    monkeypatch.chdir(ROOT)
    settings = [f"vars.root={tmp_path}", f"vars.out={tmp_path}/out", f"vars.data={photos}", f"vars.kodak={photos}"]
    settings += [f"set.{setting}" for setting in [*TWO_STEPS, "data.init_args.val_count=1"]]
    sweep = read_sweep("experiments/sweeps/distillation_encoders.yaml", settings)
    assert len(sweep.runs) == 2 * 2 * 4  # seeds, arms, encoders
    assert len(sweep.report["claims"]) == 9
    runs = [run for run in sweep.runs if run.name.endswith("enc_dec_seed=0")]
    train_here(replace(sweep, runs=runs))
    found = {run.name.removesuffix("enc_dec_seed=0").rstrip("_"): read_result(run.folder) for run in runs}
    assert {name: (r.labels["depth"], r.labels["widths"]) for name, r in found.items()} == {
        "": (1, "16-16-32-64-256"),
        "depth_2": (2, "16-16-32-64-256"),
        "depth_3": (3, "16-16-32-64-256"),
        "half_width": (1, "8-8-16-32-256"),
    }
    costs = {name: r.costs["encoder_macs_per_pixel"]["g_a"] for name, r in found.items()}
    assert costs["half_width"] < 0.5 * costs[""] < costs[""] < costs["depth_2"] < costs["depth_3"]


ARMS = ["dec", "frozen_decoder", "scratch", "teacher_longer", "adapter", "adapter_enc", "random_teacher"]
ARMS += ["paper_none", "paper_enc", "paper_dec", "paper_enc_dec", "paper_random", "latents", "painted"]


def test_every_arm_is_known_here():
    assert names("arms") == {*ARMS, "none", "enc", "enc_dec"}


@pytest.fixture
def adapter_base(made_once):
    """The decoder of the shipped teacher, as what adapters are trained over."""
    words = ["export", "--checkpoint", "small-teacher", "--base", "-o"]

    def make(folder: Path) -> None:
        assert main([*words, str(folder / "base")]) == 0

    return made_once("adapter_base", make) / "base"


@pytest.mark.parametrize("name", all_but_few_slow(ARMS, "adapter_enc", "paper_enc_dec", "latents"))
def test_two_steps_of_the_other_arms(trained, tmp_path, on_photos, name, adapter_base):
    words = [f"--vars.base={adapter_base}"] if name.startswith(("adapter", "paper")) else []
    if name in ("random_teacher", "paper_random"):
        untrained = trained("small/teacher_stage1", *on_photos)
        words += [f"--vars.random_teacher={untrained / 'checkpoints' / 'last.ckpt'}"]
    if name == "painted":
        words += ["--vars.start=small-student"]
    fit(f"arms/{name}", tmp_path, *on_photos, *words)
    assert json.loads((tmp_path / name / "metrics_val.json").read_text())


READ = [
    *(f"tiny/{name}" for name in ORDER),
    *(f"small/{name}" for name in SHIPPED),
    *(f"long/{name}" for name in LONG),
    *(f"arms/{name}" for name in ARMS),
    *(f"distillation/{name}" for name in sorted(names("distillation"))),
    *(f"micro/{name}" for name in sorted(names("micro") - {"base", "distilled", "latents"})),
]


@pytest.mark.parametrize("name", READ)
def test_what_an_experiment_says_is_read_by_its_classes_and_the_terms_of_its_loss(name, capsys):
    """Of those that are trained in `slow` tests alone, too: nothing is built."""
    given = ["vars.data=."] if name.partition("/")[0] in ("small", "long", "arms", "micro") else []
    check_read(ROOT / "experiments" / f"{name}.yaml", given, capsys)


def check_read(config: Path, given: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(config), *(f"--{word}" for word in given), "--print_config"])
    assert stop.value.code == 0, capsys.readouterr().err
    assert read_objective(objective_settings(load_config([config], given)["model"]["init_args"]))


SWEEP = ROOT / "experiments" / "sweeps" / "encoder_depth.yaml"
SMALL = ["set.vars.steps=2", "set.vars.val_every=2", "set.data.init_args.batch_size=1",
         "set.data.init_args.crop_size=128", "set.data.init_args.val_max_size=[192,192]"]  # fmt: skip
ONE = ["vars.depths=[1]", "vars.lambdas=[1]"]


@pytest.mark.slow
def test_the_depth_study_runs_and_reports(tmp_path, monkeypatch, capfd, one_photo):
    """One point of its grid: every file of the study for two steps, then table and page of all ten runs. Bound without
    training: study/test_binding.py; a smaller study: tests/test_notebook.py."""
    monkeypatch.chdir(ROOT)
    sweep = read_sweep(SWEEP, [*ONE, *SMALL, f"vars.root={tmp_path}/runs", f"vars.out={tmp_path}/out"])
    assert {run.config.stem for run in sweep.runs} == names("encoder_depth") - {"target_rate"}
    train_here(sweep)
    assert run_sweep(sweep) == 0
    selected = [run.name for run in sweep.runs if "stage1" not in run.name]
    results = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert [result["name"] for result in results] == selected
    assert {result["labels"]["arm"] for result in results} == {
        "teacher", "none", "enc", "enc_dec", "scratch", "teacher_hr"
    }  # fmt: skip
    assert "refused" in (tmp_path / "out" / "bd_rate.md").read_text()  # one rate is no curve
    page = (tmp_path / "out" / "index.html").read_text()
    assert all(name in page for name in selected)
    assert "all 10 runs done" in capfd.readouterr().out


def test_what_the_runs_of_the_depth_study_say_is_read(capsys):
    for run in read_sweep(SWEEP, ONE).runs:
        check_read(run.config, run.overrides, capsys)


def test_the_depth_study_is_the_whole_grid_with_its_controls():
    runs = read_sweep(SWEEP, []).runs
    students = [run for run in runs if run.name.startswith("depth=") and "scratch" not in run.name]
    grid = {tuple(run.settings[f"model.init_args.labels.{axis}"] for axis in ("depth", "arm", "lambda", "seed"))
            for run in students}  # fmt: skip
    assert grid == set(itertools.product([1, 2, 3], ["none", "enc", "enc_dec"], [0.4, 1.2, 4, 12], [0]))
    for run in runs:  # what a run starts from is what it waits for
        resolved = run.resolved()["model"]["init_args"]
        for path in (resolved.get(name) for name in ("init_from", "receiver_from", "teacher")):
            if path:
                assert Path(path).parent.parent.name in run.needs, run.name


@pytest.mark.parametrize("file", [path.name for path in SWEEP.parent.glob("*.yaml")])
def test_every_run_of_a_shipped_sweep_has_an_arm(file, tmp_path):
    """By which TensorBoard's HParams view and the tables tell it from the others."""
    (tmp_path / "a.png").touch()
    folder = [f"vars.kodak={tmp_path}"] if file.startswith(("distillation", "ladder", "micro")) else []
    few = [f"vars.root={tmp_path}", "vars.candidates=2"] if file == "senders.yaml" else []
    for run in read_sweep(SWEEP.with_name(file), folder + few).runs:
        assert run.settings.get("model.init_args.labels.arm"), run.name


def test_the_check_of_a_cluster_is_two_runs_of_the_study():
    """tests/robustness/slurm/one_machine.sh runs it; here it is only read."""
    sweep = read_sweep(SWEEP.with_name("two_runs.yaml"), [])
    teacher, student = sweep.runs
    assert sweep.cluster == "slurm"
    assert student.needs == [teacher.name]
    assert [teacher.config.stem, student.config.stem] == ["teacher_stage1", "student_stage1_enc"]
    assert {run.config.parent.name for run in sweep.runs} == {"encoder_depth"}
    for run in sweep.runs:
        config = run.resolved()
        assert config["trainer"]["max_steps"] == config["trainer"]["val_check_interval"] == 4
