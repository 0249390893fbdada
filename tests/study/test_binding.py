"""What `fit` would refuse of a distillation is found by `plan` and by a sweep, in the words of `fit`, beforehand."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from aeic_lightning.cli import main
from aeic_lightning.errors import UserError
from aeic_lightning.models.random_model import random_model, save
from aeic_lightning.study.binding import bind_runs
from aeic_lightning.study.plan import make_plan
from aeic_lightning.study.runner import run_sweep
from aeic_lightning.study.sweep_file import RECORD, read_sweep
from aeic_lightning.systems import DistillationSystem, OptimizationConfig

ROOT = Path(__file__).parents[2]
SYSTEMS = "aeic_lightning.systems"
ENC = {"L_enc": {"weight": 0.5}}
OWN = {"class_path": "tests.models.plain_encoder.PlainEncoder", "init_args": {"width": 8}}


@pytest.fixture
def teacher(codec_config, tmp_path) -> str:
    """A teacher of stride 32, as the student's."""
    path = tmp_path / "teacher.ckpt"
    save(random_model(codec_config), path)
    return str(path)


@pytest.fixture
def experiment(codec_config, decoder_config):
    """An experiment on images that need no files, as a mapping."""

    def make(system="DistillationSystem", terms=ENC, codec=codec_config, **settings) -> dict:
        arguments = {
            "codec": asdict(codec), "decoder": asdict(decoder_config), "objective": {"rate": 0.8, "mse": 2.0} | terms,
            "optimization": {},
        } | settings  # fmt: skip
        return {
            "model": {"class_path": f"{SYSTEMS}.{system}", "init_args": arguments},
            "data": {"class_path": "datamodules.SamplePhotos", "init_args": {"crop_size": 128, "batch_size": 1}},
            "trainer": {"max_steps": 1},
        }

    return make


def of_other_stride(codec):
    """Stride 16: a stage less in g_a, and a doubling less in g_s."""
    return replace(codec, widths=codec.widths[1:], depths=[1] * 4, synthesis_widths=[24, 16], synthesis_depths=[1, 1])


REFUSED = {
    "nothing reads": ({"terms": {}}, "no term reads the teacher"),
    "beta1 0": ({"terms": {"L_enc": {"weight": 0.0}}}, "no term reads the teacher"),
    "no such tap": ({"terms": {"L_enc": {"taps": ["codec.g_a.99"]}}}, "the student has no tap 'codec.g_a.99'"),
    "strides": ({"terms": {"L_dec": {"taps": [{"tap": "h_0", "teacher_tap": "h_3"}]}}}, "take taps of the same stride"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_plan_says_what_fit_says(experiment, teacher, codec_config, decoder_config, case):
    change, message = REFUSED[case]
    config = experiment(teacher=teacher, **change)
    with pytest.raises(UserError, match=message) as of_plan:
        make_plan(config, "x.yaml")
    objective = config["model"]["init_args"]["objective"]
    with pytest.raises(UserError) as of_fit:
        DistillationSystem(codec_config, decoder_config, objective, OptimizationConfig(), teacher)
    assert str(of_plan.value) == str(of_fit.value)


def test_an_encoder_of_another_stride_has_no_l_enc(experiment, teacher, codec_config):
    coarse = of_other_stride(codec_config)
    with pytest.raises(UserError, match=r"'y' has a position for 16 pixels in the student, but 'y' one for 32 in"):
        make_plan(experiment(teacher=teacher, codec=coarse), "x.yaml")
    decoder = {"L_dec": {"weight": 0.1, "taps": ["l_T", "l_res", "l_0"]}}
    parts = {part.name: part for part in make_plan(experiment(teacher=teacher, codec=coarse, terms=decoder), "x").parts}
    assert parts["L_dec's projections"].trained > 0, "what does not depend on the stride can be compared"


def test_without_its_teacher_a_plan_still_knows_the_student(experiment):
    assert any("not there" in line for line in make_plan(experiment(teacher="none.ckpt"), "x.yaml").assumptions)
    for terms, message in (({}, "no term reads"), ({"L_enc": {"taps": ["h_99"]}}, "the student has no tap 'h_99'")):
        with pytest.raises(UserError, match=message):
            make_plan(experiment(teacher="none.ckpt", terms=terms), "x.yaml")


def test_a_term_without_a_teacher(experiment):
    with pytest.raises(UserError, match="there is no teacher; train with DistillationSystem"):
        make_plan(experiment("StudentSystem"), "x.yaml")


@pytest.mark.parametrize("own", [None, "teacher_codec"])
def test_online_distillation(experiment, codec_config, own):
    more = {own: asdict(codec_config)} if own else {}
    assert "L_enc's projections" in [
        part.name for part in make_plan(experiment("OnlineDistillationSystem", **more), "x").parts
    ]
    with pytest.raises(UserError, match="no term reads the teacher; give L_enc or L_dec, or use TeacherSystem"):
        make_plan(experiment("OnlineDistillationSystem", terms={}, **more), "x.yaml")


# ---------------------------------------------------------------------- sweeps


@pytest.fixture
def sweep(tmp_path, experiment):
    """A sweep of a teacher and students that learn from it, which is not trained; `change` is of the last student."""

    def make(terms=ENC, **change):
        student = {"teacher": "${vars.root}/teacher/checkpoints/last.ckpt"}
        configs = {
            "teacher": experiment("TeacherSystem", terms={}),
            "first": experiment(**student),
            "second": experiment(**{"terms": terms} | student | change),
        }
        for name, config in configs.items():
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"vars": {"name": name, "root": "here"}} | config))
        runs = [{"name": "teacher", "config": "teacher.yaml"}]
        runs += [{"name": name, "config": f"{name}.yaml", "needs": ["teacher"]} for name in ("first", "second")]
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump({"root": str(tmp_path / "runs"), "runs": runs}))
        return read_sweep(file, [])

    return make


def bound(sweep) -> None:
    bind_runs(sweep.runs, {run.name: run.resolved() for run in sweep.runs})


def test_a_sweep_without_fault_is_bound(sweep):
    bound(sweep())


def test_a_tap_that_one_encoder_lacks_stops_the_sweep_before_its_first_run(sweep, codec_config, tmp_path, capfd):
    taps = {"L_enc": {"weight": 1.0, "taps": ["codec.g_a.0"]}}
    own = sweep(terms=taps, codec=replace(codec_config, encoder=OWN))
    with pytest.raises(UserError, match=r"second: distillation: the student has no tap 'codec\.g_a\.0'"):
        run_sweep(own)
    assert not (tmp_path / "runs").exists()
    assert main(["sweep", "--config", str(tmp_path / "sweep.yaml"), "--dry-run"]) == 2
    said = capfd.readouterr()
    assert "missing second: " in said.out
    assert "second: distillation: the student has no tap" in said.err


@pytest.mark.parametrize("case", ["nothing reads", "beta1 0", "strides"])
def test_a_run_that_fit_would_refuse_stops_the_sweep(sweep, case):
    change, message = REFUSED[case]
    with pytest.raises(UserError, match=f"second: .*{message}"):
        bound(sweep(**change))


def test_a_run_that_is_done_is_not_asked_again(sweep):
    broken = sweep(terms={})
    (broken.runs[-1].folder).mkdir(parents=True)
    (broken.runs[-1].folder / RECORD).touch()
    bound(broken)


@pytest.mark.parametrize("key", ["teacher", "init_from", "receiver_from"])
def test_a_file_that_no_run_writes_stops_the_sweep(sweep, key):
    system = {"receiver_from": "elsewhere.ckpt"} if key == "receiver_from" else {key: "elsewhere.ckpt"}
    with pytest.raises(UserError, match=rf"second: {key}: no file elsewhere\.ckpt"):
        bound(sweep(**system))


def test_other_rate_levels_than_the_teachers(sweep, codec_config):
    with pytest.raises(UserError, match=r"second: .* has 0 rate levels, the student 2"):
        bound(sweep(codec=replace(codec_config, rate_levels=[2.0, 1.0])))


POINTS = {
    "tiny": [],
    "demo": [],
    "encoder_depth": ["vars.depths=[1]", "vars.lambdas=[1]"],
    "distillation_encoders": ["vars.kodak=docs/gallery", "vars.data=docs"],
    "paper": ["vars.lambdas=[32]"],
}


@pytest.mark.parametrize("file", POINTS)
def test_the_shipped_sweeps_are_bound(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    bound(read_sweep(Path(f"experiments/sweeps/{file}.yaml"), ["vars.root=nowhere", *POINTS[file]]))
