"""Runs are seeds of one curve only if their composed settings agree but for seed, paths and rate."""

import copy
import json

import pytest
import yaml

from aeic_lightning.config.run_record import _data_files
from aeic_lightning.study.experiment import experiment_settings
from aeic_lightning.study.results import Result, read_results, write_results
from aeic_lightning.study.runner import sources_of
from aeic_lightning.study.study import differing, group
from aeic_lightning.study.sweep_file import Run

CONFIG = {
    "seed_everything": 0,
    "model": {
        "class_path": "aeic_lightning.systems.DistillationSystem",
        "init_args": {
            "codec": {"widths": [8, 16], "rate_levels": []},
            "objective": {
                "rate": {"weight": 0.8, "warmup_steps": 400},
                "mse": 2.0,
                "mine": {"class_path": "my.Term", "weight": 0.1, "init_args": {"temperature": 1.0}},
            },
            "optimization": {"learning_rates": [[0, 1e-4]], "freeze": [], "level": None},
            "init_from": None,
            "receiver_from": "runs/a/teacher_seed=0/checkpoints/last.ckpt",
            "labels": {"arm": "enc"},
        },
    },
    "data": {"class_path": "datamodules.ImageFolder", "init_args": {"train_dir": "/a/photos/train", "seed": 0}},
    "trainer": {"max_steps": 100, "default_root_dir": "runs/a/enc_0", "logger": True,
                "callbacks": [{"class_path": "callbacks.progress.Progress", "init_args": {"every": 1}},
                              {"class_path": "my.Callback", "init_args": {"every": 1}}]},
}  # fmt: skip


def changed(key: str, value) -> dict:
    """CONFIG with another value at a dotted key; a number is a place in a list."""
    config = copy.deepcopy(CONFIG)
    *path, last = key.split(".")
    place = config
    for name in path:
        place = place[int(name) if isinstance(place, list) else name]
    assert place[last] != value
    place[last] = value
    return config


OTHERS = {
    "model.init_args.objective.mine.init_args.temperature": 2.0,
    "model.init_args.objective.mine.weight": 0.2,
    "model.init_args.objective.mse": 3.0,
    "model.init_args.objective.rate.warmup_steps": 0,
    "model.init_args.optimization.freeze": ["codec.g_a"],
    "model.init_args.optimization.learning_rates": [[0, 2e-4]],
    "model.init_args.codec.widths": [8, 24],
    "model.init_args.receiver_from": None,
    "model.class_path": "aeic_lightning.systems.StudentSystem",
    "data.init_args.train_dir": "/a/photos/others",
    "trainer.max_steps": 200,
    "trainer.callbacks.1.init_args": {"every": 2},
}
SAME = {
    "seed_everything": 1,
    "data.init_args.seed": 1,
    "data.init_args.train_dir": "/elsewhere/train",
    "model.init_args.receiver_from": "runs/b/teacher_seed=1/checkpoints/last.ckpt",
    "model.init_args.objective.rate.weight": 1.6,
    "model.init_args.optimization.level": 2.0,
    "trainer.default_root_dir": "runs/a/enc_1",
    "trainer.logger": False,
    "trainer.callbacks.0.init_args": {"every": 7},
}


@pytest.mark.parametrize("key", OTHERS)
def test_another_setting_is_another_experiment(key):
    found = differing([experiment_settings(CONFIG), experiment_settings(changed(key, OTHERS[key]))])
    assert len(found) == 1
    assert key.replace(".init_args", "").removeprefix("model.").startswith(found[0].rsplit(".", 1)[0])


@pytest.mark.parametrize("key", SAME)
def test_seed_paths_and_rate_are_the_same_experiment(key):
    assert differing([experiment_settings(CONFIG), experiment_settings(changed(key, SAME[key]))]) == []


def test_what_a_resume_changed_and_own_sources_count():
    begun = experiment_settings(CONFIG)
    extended = {"resumed": [{"step": 50, "changed": {"trainer.max_steps": [50, 100]}}]}
    short = changed("trainer.max_steps", 50)
    assert differing([begun, experiment_settings(short, extended)]) == [], "the last limit is the run's"
    rates = {"resumed": [{"step": 50, "changed": {"model.init_args.optimization.learning_rates": [0, [[0, 1e-3]]]}}]}
    assert differing([begun, experiment_settings(CONFIG, rates)]) == ["optimization.learning_rates"]
    a, b = (experiment_settings(CONFIG, {"sources": {"my": digest}}) for digest in ("aa", "bb"))
    assert differing([a, b]) == ["source of my"]


def test_a_run_from_before_a_setting_is_one_of_its_default():
    before, default, other = (copy.deepcopy(CONFIG) for _ in range(3))
    default["model"]["init_args"]["codec"]["by_rows"] = False
    other["model"]["init_args"]["codec"]["by_rows"] = True
    assert differing([experiment_settings(config) for config in (before, default)]) == []
    assert differing([experiment_settings(config) for config in (before, other)]) == ["codec.by_rows"]


def result(name: str, config: dict | None, seed: int, rate: float = 1.0) -> Result:
    labels = {"role": "student", "arm": "enc", "lambda": rate, "seed": seed}
    return Result(name, "run", labels, {"bpp": {"mean": 0.1, "images": 2}}, settings=experiment_settings(config or {}))


def test_runs_of_other_settings_are_not_pooled_and_the_setting_is_named():
    key = "model.init_args.objective.mine.init_args.temperature"
    runs = [result("a", CONFIG, 0), result("b", changed(key, 2.0), 1)]
    curves = group(runs)
    assert [(c.name, c.seeds) for c in curves] == [
        ("arm enc · objective.mine.temperature 1.0", 1),
        ("arm enc · objective.mine.temperature 2.0", 1),
    ]
    assert [c.name for c in group(runs, by=["arm"])] == [c.name for c in curves], "labels do not pool them either"


def test_seeds_of_one_experiment_are_one_curve():
    runs = [result(f"{seed}{rate}", changed("model.init_args.objective.rate.weight", rate), seed, rate)
            for seed in (0, 1) for rate in (1.0, 2.0)]  # fmt: skip
    (curve,) = group(runs)
    assert (curve.name, curve.seeds, len(curve.settings)) == ("arm enc", 2, 2)
    (curve,) = group([*runs, result("old", None, 2)])
    assert curve.seeds == 3, "of results of before nothing is known"


def test_experiments_with_the_same_seeds_are_curves_of_their_own():
    other = changed("model.init_args.optimization.freeze", ["codec"])
    runs = [result(f"{i}{seed}", config, seed) for i, config in enumerate((CONFIG, other)) for seed in (0, 1)]
    assert [(c.name, c.seeds) for c in group(runs)] == [
        ("arm enc · optimization.freeze []", 2),
        ("arm enc · optimization.freeze ['codec']", 2),
    ]


def test_a_run_folder_and_a_result_file_keep_the_settings(make_run, tmp_path):
    folder = make_run("one", settings={"optimization": {"freeze": ["codec.g_a"]}})
    record = json.loads((folder / "run.json").read_text()) | {"sources": {"my": "ab" * 32}}
    (folder / "run.json").write_text(json.dumps(record))
    (found,) = read_results([folder])
    assert found.settings["optimization.freeze"] == "['codec.g_a']"
    assert found.settings["source of my"] == "abababababab"
    assert found.settings == experiment_settings(yaml.safe_load((folder / "config.yaml").read_text()), record)
    write_results(tmp_path / "r.json", [found])
    assert read_results([tmp_path / "r.json"])[0].settings == found.settings
    assert sources_of(Run("one", folder / "x.yaml", folder)) == {"my": "ab" * 32}


def test_two_folders_of_one_name_are_two_data_sets_and_a_moved_one_is_not(tmp_path):
    """By what is in them, as `run.json` has it; runs from before that was kept are compared by the name alone."""
    contents = {"a": {"one.png": b"1", "deep/two.png": b"22"}, "other": {"one.png": b"1", "deep/two.png": b"333"}}
    contents |= {"moved": contents["a"], "fewer": {"one.png": b"1"}}
    settings = {"old": experiment_settings(CONFIG, {})}
    for place, files in contents.items():
        folder = tmp_path / place / "train"
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        config = tmp_path / f"{place}.yaml"
        config.write_text(yaml.safe_dump(changed("data.init_args.train_dir", str(folder))))
        record = {"data_files": _data_files(config)}
        settings[place] = experiment_settings(yaml.safe_load(config.read_text()), record)
    assert differing([settings["a"], settings["moved"], settings["old"]]) == []
    for other in ("other", "fewer"):
        assert differing([settings["a"], settings[other]]) == ["files of data.train_dir"]
        assert differing([settings["old"], settings[other]]) == []
