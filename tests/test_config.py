"""Experiment files: includes, interpolation, overrides that reach what refers to them, clear complaints."""

import pytest
import yaml

from aeic_lightning.cli import main
from aeic_lightning.config import load_config, parse_overrides, with_sources
from aeic_lightning.errors import UserError
from aeic_lightning.own_classes import arguments_of
from aeic_lightning.systems import DistillationSystem, StudentSystem


@pytest.fixture
def files(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "vars: {steps: 10, run: 'runs/${vars.name}'}\ntrainer: {max_steps: '${vars.steps}'}\n"
    )
    (tmp_path / "child.yaml").write_text(
        "include: [base.yaml]\nvars: {name: child}\nmodel: {lr: 0.1, out: '${vars.run}/x'}\n"
    )
    return tmp_path


def test_overrides_reach_interpolated_values(files):
    config = load_config([files / "child.yaml"], ["vars.steps=99", "vars.name=other"])
    assert config == {"trainer": {"max_steps": 99}, "model": {"lr": 0.1, "out": "runs/other/x"}}


def test_the_projects_experiments_are_included_by_name_from_anywhere(files):
    (files / "mine.yaml").write_text("include: [trainer/gpu.yaml]\n")
    gpu = {"accelerator": "gpu", "devices": 1, "log_every_n_steps": 50}
    assert load_config([files / "mine.yaml"]) == {"trainer": gpu}
    (files / "trainer").mkdir()
    (files / "trainer" / "gpu.yaml").write_text("a: 1\n")
    assert load_config([files / "mine.yaml"]) == {"a": 1}, "a file beside it comes first"


def test_later_files_win(files):
    (files / "more.yaml").write_text("model: {lr: 0.5}\n")
    assert load_config([files / "child.yaml", files / "more.yaml"])["model"]["lr"] == 0.5


def test_lists_of_an_included_file_are_replaced(files):
    """So learning-rate steps are a list: a later stage must not inherit the steps of an earlier one."""
    (files / "one.yaml").write_text("rates: [[0, 1.0], [600, 0.5]]\n")
    (files / "two.yaml").write_text("include: [one.yaml]\nrates: [[0, 0.1]]\n")
    assert load_config([files / "two.yaml"])["rates"] == [[0, 0.1]]


LOGGERS = "lightning.pytorch.loggers"


@pytest.mark.parametrize(
    ("later", "logger"),
    [
        (
            f"{{class_path: {LOGGERS}.CSVLogger, init_args: {{flush_logs_every_n_steps: 5}}}}",
            {"class_path": f"{LOGGERS}.CSVLogger", "init_args": {"save_dir": "x", "flush_logs_every_n_steps": 5}},
        ),
        (
            f"{{class_path: {LOGGERS}.CSVLogger}}",
            {"class_path": f"{LOGGERS}.CSVLogger", "init_args": {"save_dir": "x"}},
        ),
        (
            "{init_args: {save_dir: y}}",
            {"class_path": f"{LOGGERS}.TensorBoardLogger", "init_args": {"save_dir": "y", "default_hp_metric": False}},
        ),
        ("[{class_path: some.Logger}]", [{"class_path": "some.Logger"}]),
        ("true", True),
        ("null", None),
    ],
)
def test_another_class_keeps_no_arguments_that_it_does_not_take(files, later, logger):
    arguments = "{save_dir: x, default_hp_metric: false}"
    (files / "one.yaml").write_text(
        f"trainer: {{logger: {{class_path: {LOGGERS}.TensorBoardLogger, init_args: {arguments}}}}}"
    )
    (files / "two.yaml").write_text(f"include: [one.yaml]\ntrainer: {{logger: {later}}}\n")
    assert load_config([files / "two.yaml"])["trainer"]["logger"] == logger
    assert load_config([files / "one.yaml"], [f"trainer.logger={later}"])["trainer"]["logger"] == logger


def test_a_subclass_keeps_the_arguments_that_it_hands_on(files):
    (files / "one.yaml").write_text(
        "data: {class_path: datamodules.SamplePhotos, init_args: {batch_size: 3, cache: true}}"
    )
    config = load_config([files / "one.yaml"], ["data.class_path=datamodules.ImageFolder", "data.init_args.val_dir=v"])
    assert config["data"]["init_args"] == {"batch_size": 3, "cache": True, "val_dir": "v"}


def test_an_argument_comes_back_with_a_class_that_takes_it(files):
    for name, data in {
        "one": "{class_path: datamodules.ImageFolder, init_args: {train_dir: t, seed: 1}}",
        "two": "{class_path: datamodules.SamplePhotos, init_args: {seed: 2}}",
        "three": "{class_path: datamodules.ImageFolder}",
    }.items():
        (files / f"{name}.yaml").write_text(f"data: {data}")
    order = [files / f"{name}.yaml" for name in ("one", "two", "three")]
    assert load_config(order[:2])["data"] == {"class_path": "datamodules.SamplePhotos", "init_args": {"seed": 2}}
    assert load_config(order)["data"]["init_args"] == {"train_dir": "t", "seed": 2}


def test_an_element_of_a_list_is_changed_by_its_number(files):
    (files / "one.yaml").write_text("trainer: {callbacks: [{class_path: A, init_args: {n: 1, m: 2}}, {class_path: B}]}")
    config = load_config([files / "one.yaml"], ["trainer.callbacks.0.init_args.n=7"])
    assert config["trainer"]["callbacks"] == [{"class_path": "A", "init_args": {"n": 7, "m": 2}}, {"class_path": "B"}]
    with pytest.raises(UserError, match=r"trainer\.callbacks\.2 is set, but trainer\.callbacks is a list of 2"):
        load_config([files / "one.yaml"], ["trainer.callbacks.2.init_args.n=7"])


@pytest.mark.parametrize(
    ("word", "value"),
    [("False", False), ("true", True), ("1e-3", 1e-3), ("[1,2]", [1, 2]), ("null", None), ("8", 8), ("text", "text")],
)
def test_values_have_the_type_that_yaml_gives_them(files, word, value):
    got = load_config([files / "child.yaml"], [f"model.lr={word}"])["model"]["lr"]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--a.b=1"], ["a.b=1"]),
        (["--a.b", "1", "--c=x=y"], ["a.b=1", "c=x=y"]),
        (["--flag", "--n", "-1"], ["flag=true", "n=-1"]),
    ],
)
def test_words_of_the_command_line(words, expected):
    assert parse_overrides(words) == expected


def test_a_stray_word_is_refused():
    with pytest.raises(UserError, match="unexpected argument 'oops'"):
        parse_overrides(["oops"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: ${vars.nothing}", "nothing"),
        ("a: [1, 2", "no YAML"),
        ("- a\n- list", "no settings"),
        ("include: [missing.yaml]", r"no config file .*missing\.yaml, which .*bad\.yaml includes"),
        ("include: [bad.yaml]", "includes itself"),
        ("include: [one.yaml, two.yaml]", r"bad\.yaml includes .*one\.yaml twice, by .*bad\.yaml and by .*two\.yaml"),
        ("vars:\n  name: ???\nb: ${vars.name}", "name"),
        (
            "vars: {lamda: 2, lambda: 1}\nb: ${vars.lambda}",
            r"vars\.lamda is set, but nothing refers.*did you mean lambda",
        ),
    ],
)
def test_complaints_are_one_line_and_name_the_file(tmp_path, content, message):
    (tmp_path / "bad.yaml").write_text(content)
    (tmp_path / "one.yaml").write_text("a: 1\n")
    (tmp_path / "two.yaml").write_text("include: [one.yaml]\n")
    with pytest.raises(UserError, match=message) as caught:
        load_config([tmp_path / "bad.yaml"])
    assert "\n" not in str(caught.value)
    assert "bad.yaml" in str(caught.value)


def test_a_variant_is_named_as_a_file_of_its_own_would_be(tmp_path):
    """It comes after the rest of its file, which is read once, and what it includes stands before it."""
    (tmp_path / "base.yaml").write_text("a: base\nb: base\nc: base\nd: base\n")
    (tmp_path / "student.yaml").write_text(
        "include: [base.yaml]\nb: student\nc: student\nd: student\n"
        "variants:\n"
        "  enc: {c: enc, d: enc}\n"
        "  enc_dec: {include: [student_enc.yaml], d: enc_dec}\n"
        "  both: {include: [base.yaml]}\n"
        "  round: {include: [student/round.yaml]}\n"
    )
    student = {"a": "base", "b": "student", "c": "student", "d": "student"}
    assert load_config([tmp_path / "student.yaml"]) == student
    for name in ("student_enc", "student/enc"):
        assert load_config([tmp_path / f"{name}.yaml"]) == student | {"c": "enc", "d": "enc"}
    assert load_config([tmp_path / "student_enc_dec.yaml"]) == student | {"c": "enc", "d": "enc_dec"}
    assert f"c: enc  # {tmp_path}/student.yaml (enc); " in with_sources([tmp_path / "student_enc_dec.yaml"])
    with pytest.raises(UserError, match=r"base\.yaml twice"):
        load_config([tmp_path / "student_both.yaml"])
    with pytest.raises(UserError, match="includes itself"):
        load_config([tmp_path / "student" / "round.yaml"])
    with pytest.raises(UserError, match=r"student_end\.yaml; .*student\.yaml has the variants .*did you mean enc\?"):
        load_config([tmp_path / "student_end.yaml"])
    (tmp_path / "student_enc.yaml").write_text("a: a file of that name comes first\n")
    assert load_config([tmp_path / "student_enc.yaml"]) == {"a": "a file of that name comes first"}
    (tmp_path / "tiny.yaml").write_text("variants: [a, b]")
    with pytest.raises(UserError, match="variants is a mapping from names"):
        load_config([tmp_path / "tiny" / "a.yaml"])


def test_a_file_of_mine_hides_no_shipped_experiment(files, monkeypatch):
    monkeypatch.chdir(files)
    (files / "tiny.yaml").write_text("variants: {mine: {a: 1}}")
    assert load_config(["tiny/mine.yaml"]) == {"a": 1}
    assert load_config(["tiny/student_enc.yaml"])["model"]["class_path"].endswith("DistillationSystem")


def test_sizes_alone_are_those_of_the_whole(tmp_path):
    """Of classes within the system too: what an encoder does not take is left out."""
    (tmp_path / "mine.yaml").write_text(
        "include: [micro/float_none.yaml]\nmodel: {class_path: aeic_lightning.systems.TeacherSystem, init_args: "
        "{codec: {encoder: {class_path: tests.models.plain_encoder.PlainEncoder, init_args: {width: 8}}}}}\n"
    )
    for file in ("mine.yaml", "tiny/student_enc.yaml", "arms/adapter.yaml"):
        path = tmp_path / file if file == "mine.yaml" else file
        whole, sizes = (load_config([path], [], classes)["model"]["init_args"] for classes in ("all", "parts"))
        assert [sizes[part] for part in ("codec", "decoder")] == [whole[part] for part in ("codec", "decoder")]
    sizes = load_config([tmp_path / "mine.yaml"], [], "parts")["model"]["init_args"]
    assert sizes["codec"]["encoder"]["init_args"] == {"width": 8}


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no config file .*nowhere\.yaml"):
        load_config([tmp_path / "nowhere.yaml"])


def test_a_misspelt_override_of_vars_is_refused_and_a_true_one_is_not(files):
    with pytest.raises(UserError, match=r"vars\.step is set, but nothing refers to it; did you mean steps"):
        load_config([files / "child.yaml"], ["vars.step=3"])
    # Overriding what refers to a var does not make the var a mistake.
    assert load_config([files / "child.yaml"], ["trainer.max_steps=3"])["trainer"]["max_steps"] == 3


def test_sources_say_which_file_sets_a_value_and_what_it_replaces(files, capsys):
    (files / "more.yaml").write_text(
        "include: [child.yaml]\nmodel: {lr: 0.5, taps: [{tap: y}, {tap: z}], same: '${trainer}'}\n"
    )
    words = ["fit", "--config", str(files / "more.yaml"), "--vars.name=mine", "--print_config=sources"]
    assert main(words) == 0
    text = capsys.readouterr().out
    base, child, more = (files / f"{name}.yaml" for name in ("base", "child", "more"))
    assert text.splitlines() == [
        "vars:",
        f"  steps: 10  # {base}",
        f"  run: runs/mine  # {base}",
        f"  name: mine  # command line; child in {child}",
        "trainer:",
        f"  max_steps: 10  # {base}",
        "model:",
        f"  lr: 0.5  # {more}; 0.1 in {child}",
        f"  out: runs/mine/x  # {child}",
        f"  taps:  # {more}",
        "    - {tap: y}",
        "    - {tap: z}",
        "  same:",
        f"    max_steps: 10  # {more}",
    ]
    assert yaml.safe_load(text)["model"] == load_config([more], ["vars.name=mine"])["model"]


def test_a_setting_that_names_a_file_is_not_replaced_by_what_the_file_says(files, monkeypatch, capfd):
    """`init_from` is a path or settings; jsonargparse looks into every such file for settings."""
    monkeypatch.chdir(files)
    (files / "start.ckpt").write_text("{path: elsewhere, only: [codec]}")
    words = ["fit", "--config", "tiny/teacher_stage1.yaml", "--model.init_args.init_from=start.ckpt", "--print_config"]
    with pytest.raises(SystemExit):
        main(words)
    assert yaml.safe_load(capfd.readouterr().out)["model"]["init_args"]["init_from"] == "start.ckpt"


def test_a_system_with_a_codec_keeps_its_earlier_name(tmp_path):
    path = "aeic_lightning.systems.CompressionSystem"
    for init_args, found in (({"codec": {"depths": [1]}}, "TeacherSystem"), ({"model": {}}, "CompressionSystem")):
        (tmp_path / "old.yaml").write_text(yaml.safe_dump({"model": {"class_path": path, "init_args": init_args}}))
        assert load_config([tmp_path / "old.yaml"])["model"]["class_path"] == f"aeic_lightning.systems.{found}"


def test_arguments_that_a_class_decides_for_its_base_are_none_of_its_own():
    """Else a student that takes a distillation's place in a file would keep the teacher, and be refused."""
    assert {"codec", "receiver_from", "labels"} <= set(arguments_of(StudentSystem))
    assert not {"model", "start", "teacher"} & set(arguments_of(StudentSystem))
    assert "teacher" in arguments_of(DistillationSystem)
