"""docs/recipe.md is true: each value of its column "ours" is read where it is, and no number of the files is left out.

A cell names values as `key = value` or `FILES: key = value`. A key is a path in the composed config, without
`init_args` and with a callback's class in place of its number, or an attribute or `Name(argument)` of a module.
"""

import dataclasses
import inspect
import math
import pkgutil
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from aeic_lightning.config import load_config
from tests.experiment_names import EXPERIMENTS, all_experiments

ROOT = Path(__file__).parent.parent
FOLDERS = {"AEIC": "paper/*_stage?", "Compress and classify": "classification/paper_step*"}
PARTS = {"stage1", "stage2", "paper_step2"}  # included by others, or without the values that these give
PACKAGES = ("aeic_lightning.", "callbacks.", "datamodules.", "torch.")
NOT_LISTED = {
    "seed_everything": "any seed will do",
    "data.seed": "any seed will do",
    "data.*_dir": "a path",
    "data.num_workers": "speed alone",
    "data.pin_memory": "speed alone",
    "data.eval_batch_size": "speed alone",
    "model.init_from": "a path",
    "model.teacher": "a path",
    "model.teacher_cache": "a path",
    "paper: model.write_streams": "files that a validation writes, beside those that `evaluate` writes of all images",
    "trainer.accelerator": "what it runs on",
    "trainer.strategy": "what it runs on",
    "trainer.default_root_dir": "a path",
    "trainer.enable_model_summary": "what is printed",
    "trainer.log_every_n_steps": "what is logged",
    "trainer.logger.*": "what is logged",
    "trainer.num_sanity_val_steps": "what is validated",
    "trainer.use_distributed_sampler": "the data modules have their own",
    "paper: trainer.max_epochs": "none: max_steps ends the run",
    "paper: trainer.val_check_interval": "what is validated",
    "paper: trainer.check_val_every_n_epoch": "what is validated",
    "trainer.callbacks.*.every_n_steps": "how often it is saved, printed or drawn",
    "trainer.callbacks.RateDistortionPicture.*": "what is drawn",
    "trainer.callbacks.ComparisonLayout.*": "what is drawn",
    "trainer.callbacks.AccuracyMetrics.*": "what is measured beside accuracy",
}
"""Settings that are no part of a recipe, and why; `paper: ` limits an entry to one folder."""

Config = dict[str, Any]  # leaves by path


@dataclasses.dataclass(frozen=True)
class Claim:
    """One value of the column "ours"."""

    heading: str
    files: tuple[str, ...]
    key: str
    value: Any

    def about(self, file: str) -> bool:
        return any(fnmatch(file, pattern) for pattern in self.files)

    def __str__(self) -> str:
        return f"{', '.join(self.files)}: {self.key} = {self.value}"


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by path. A list is one, unless it holds classes, which then stand for their places."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "init_args":
                yield from leaves(inner, path)
            elif name != "class_path":
                yield from leaves(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for item in value:
            yield from leaves(item, f"{path}.{item['class_path'].rsplit('.', 1)[-1]}")
    else:
        yield path, value


@cache
def configs() -> dict[str, dict[str, Config]]:
    """By heading and file."""
    found = {}
    for heading, pattern in FOLDERS.items():
        files = [EXPERIMENTS / f"{name}.yaml" for name in all_experiments() if fnmatch(name, pattern)]
        files = [path for path in files if path.stem not in PARTS]
        given = ["vars.data=d"] if heading != "AEIC" else []
        found[heading] = {path.stem: dict(leaves(load_config([path], given))) for path in files}
    return found


def parse(text: str) -> Any:
    """A YAML value; numbers as 1e-4 too, which YAML takes for words."""

    def numbers(value: Any) -> Any:
        if isinstance(value, list):
            return [numbers(item) for item in value]
        return float(value) if isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value) else value

    return numbers(yaml.safe_load(text))


@cache
def rows() -> list[tuple[str, str]]:
    """Heading of the paper, and the cell of the column "ours", of each row."""
    found, heading, column = [], "", -1
    for line in (ROOT / "docs" / "recipe.md").read_text().splitlines():
        if line.startswith("## "):
            heading = next(name for name in FOLDERS if line.startswith(f"## {name}"))
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            column = -1
        elif column < 0:
            assert cells[:4] == ["setting", "paper", "release", "ours"], line
            column = 3
        elif not set(line) <= set("|-"):
            assert len(cells) in (4, 5), line
            found.append((heading, cells[column]))
            # A reason may name a value of the small sizes; it is read as well.
            found += [(heading, cell) for cell in cells[4:] if " = " in cell]
    return found


@cache
def claims() -> list[Claim]:
    found = []
    for heading, cell in rows():
        for span in re.findall(r"`([^`]+ = [^`]+)`", cell):
            match = re.fullmatch(r"(?:([\w*?, ]+): )?(\S+) = (.+)", span)
            assert match, span
            files = tuple((match[1] or "*").split(", "))
            found.append(Claim(heading, files, match[2], parse(match[3])))
    return found


@cache
def in_the_code(key: str) -> Any:
    """`module.CONSTANT`, `module.Class.attribute`, or the default of an argument: `module.Class(argument)`."""
    match = re.fullmatch(r"([\w.]+)\((\w+)\)", key)
    if not match:
        return pkgutil.resolve_name(key)
    owner, argument = pkgutil.resolve_name(match[1]), match[2]
    if dataclasses.is_dataclass(owner):
        (field,) = (field for field in dataclasses.fields(owner) if field.name == argument)
        factory = field.default_factory
        return field.default if factory is dataclasses.MISSING else factory()
    return inspect.signature(owner).parameters[argument].default


def same(stated: Any, actual: Any) -> bool:
    if isinstance(stated, list) and isinstance(actual, (list, tuple)):
        return len(stated) == len(actual) and all(map(same, stated, actual))
    if isinstance(stated, bool) or isinstance(actual, bool) or not isinstance(stated, (int, float)):
        return stated == actual
    return isinstance(actual, (int, float)) and math.isclose(stated, actual, rel_tol=1e-9)


@cache
def is_listed(heading: str, path: str) -> bool:
    folder = FOLDERS[heading].split("/")[0]
    names = (path, f"{folder}: {path}")
    return not any(fnmatch(name, pattern) for pattern in NOT_LISTED for name in names)


@cache
def stated(heading: str, file: str) -> list[Claim]:
    return [c for c in claims() if c.heading == heading and c.about(file) and not c.key.startswith(PACKAGES)]


def problems(heading: str, file: str, config: Config) -> list[str]:
    """Where the page and a file disagree, and settings of the file that the page leaves out."""
    found, known = [], set()
    for claim in stated(heading, file):
        known.add(claim.key)
        if claim.key not in config:
            found.append(f"there is no {claim.key}")
        elif not same(claim.value, config[claim.key]):
            found.append(f"{claim.key} is {config[claim.key]}, the page has {claim.value}")
    missing = [path for path in config if path not in known and is_listed(heading, path)]
    return found + [f"the page does not state {path} = {config[path]}" for path in missing]


def test_every_value_of_the_files_is_on_the_page():
    assert {heading: sorted(files) for heading, files in configs().items()} == {
        "AEIC": ["me_stage1", "me_stage2", "se_stage1", "se_stage2", "se_stage3"],
        "Compress and classify": ["paper_step1", "paper_step2_q1", "paper_step2_q2", "paper_step2_q3"],
    }
    for heading, files in configs().items():
        for file, config in files.items():
            assert not problems(heading, file, config), file


def test_every_value_is_of_a_file():
    for claim in claims():
        for pattern in claim.files:
            assert any(fnmatch(file, pattern) for file in configs()[claim.heading]), claim


@pytest.mark.parametrize("claim", [c for c in claims() if c.key.startswith(PACKAGES)], ids=lambda claim: claim.key)
def test_every_value_of_the_code_is_as_stated(claim):
    assert same(claim.value, in_the_code(claim.key)), f"{claim.key} is {in_the_code(claim.key)}"


def test_nothing_is_stated_twice():
    """Two values for one setting of a file could not both be read."""
    seen = [(c.heading, file, c.key) for c in claims() for file in configs()[c.heading] if c.about(file)]
    configured = [entry for entry in seen if not entry[2].startswith(PACKAGES)]
    assert len(configured) == len(set(configured))


def test_no_number_of_ours_stands_outside_of_what_is_read():
    for _, cell in rows():
        words = re.sub(r"`[^`]*`", "", cell)
        assert not re.search(r"(?<![\w-])\d+(\.\d+)?(e-?\d+)?(?![\w-])", words.replace("8 bits", "")), cell


def test_what_is_not_listed_exists():
    for pattern in NOT_LISTED:
        hits = [
            path
            for heading, files in configs().items()
            for config in files.values()
            for path in config
            if any(fnmatch(name, pattern) for name in (path, f"{FOLDERS[heading].split('/')[0]}: {path}"))
        ]
        assert hits, f"no setting is called {pattern}"


def changed(value: Any) -> list[Any]:
    """The value with one of its numbers changed, for each of them."""
    if isinstance(value, list):
        return [[*value[:i], other, *value[i + 1 :]] for i, item in enumerate(value) for other in changed(item)]
    if isinstance(value, bool):
        return [not value]
    return [value * 10 + 1] if isinstance(value, (int, float)) else []


def test_a_changed_number_does_not_pass():
    """Each number of each file in turn, but for those that are no part of the recipe."""
    count = 0
    for heading, files in configs().items():
        for file, config in files.items():
            for path, value in config.items():
                for other in changed(value) if is_listed(heading, path) else ():
                    (problem,) = problems(heading, file, config | {path: other})
                    assert problem.startswith(f"{path} is {other}, the page has "), (file, path)
                    count += 1
            (problem,) = problems(heading, file, config | {"model.objective.another": 1.0})
            assert problem == "the page does not state model.objective.another = 1.0"
    assert count > 300


@pytest.mark.parametrize("file", ["me_stage2", "se_stage2", "se_stage3"])
def test_lambda_is_what_the_command_says(file):
    path = ROOT / "experiments" / "paper" / f"{file}.yaml"
    for value in (4, 32):
        assert load_config([path], [f"vars.lambda={value}"])["model"]["init_args"]["objective"]["rate"] == value
