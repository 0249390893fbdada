"""What the repository promises about itself: versions, citation, sizes of files, the direction of imports."""

import argparse
import ast
import graphlib
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import aeic_lightning
from aeic_lightning.cli.commands import export

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ["aeic_lightning", "callbacks", "datamodules", "benchmarks"]
SOURCES = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]

PRIVATE = {
    "_ddp_kwargs": "lightning",
    "_ddp_params_and_buffers_to_ignore": "torch",
    "_accelerator_connector": "lightning",
    "_batches_that_stepped": "lightning",
    "_active_adapter": "peft",
    "_int_mm": "torch",
    "_cdata": "torch",
    "_modules": "torch",
    "_foreach_lerp_": "torch",
    "_foreach_norm": "torch",
    "_dynamo": "torch",
    "_call_impl": "torch",
    "_compiled_call_impl": "torch",
    "_get_file_writer": "torch",
    "_file_name": "tensorboard",
}
"""Names without a promise, and the library that each belongs to."""


def imported(file: Path) -> set[str]:
    """All modules that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_no_file_is_longer_than_600_lines():
    """An alarm, no aim: such a file has more than one subject."""
    files = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > 600} == {}


def test_make_installs_versions_that_the_project_allows():
    lines = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    pinned = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    extras = PROJECT["optional-dependencies"]
    for text in itertools.chain(PROJECT["dependencies"], *extras.values()):
        wanted = Requirement(text)
        if wanted.name == PROJECT["name"]:
            continue
        version = pinned[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(Version(version), prereleases=True), f"{wanted} but {version} in constraints"
        assert wanted.specifier, f"{wanted.name} has no lower bound"


def test_private_names_of_a_library_are_used_within_an_upper_bound():
    """No version promises to keep them; those of our own objects are read within their class alone."""
    private = re.compile(r"[\w.\])]+(?<!\bself)(?<!\bcls)(?<!\bother)(?<!super\(\))\.(_[a-z]\w+)")
    used = {match[1]: path.name for path in SOURCES for match in private.finditer(path.read_text())}
    for documented in ("_asdict", "_replace", "_exit"):  # of named tuples and of os, in spite of their names
        used.pop(documented, None)
    assert used, "the pattern finds what it is for"
    assert not set(used) - set(PRIVATE), f"whose are these? {used}"
    texts = itertools.chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    bounded = {r.name for r in map(Requirement, texts) if "<" in str(r.specifier)}
    assert set(PRIVATE.values()) | {"jsonargparse"} <= bounded, "of jsonargparse the texts of messages are read"


def test_citation_names_both_papers_and_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] == aeic_lightning.__version__
    assert citation["license"] == PROJECT["license"]
    assert {paper["year"]: paper["authors"][0]["family-names"] for paper in citation["references"]} == {
        2026: "Zhang",
        2022: "Bai",
    }
    assert "arXiv:2512.12229" in citation["references"][0]["identifiers"][0]["value"]


@pytest.mark.parametrize("name", ["aeic_lightning", "callbacks", "datamodules"])
def test_its_types_may_be_used_by_others(name):
    assert (ROOT / name / "py.typed").is_file()


def test_nothing_imports_from_the_tests():
    helpers = {path.stem for path in (ROOT / "tests").rglob("*.py")} - {"__main__"}
    for path in SOURCES:
        names = imported(path)
        assert not [name for name in names if name.split(".")[0] in {"tests", "scripts"}], path
        assert not names & helpers, path


UNIX = {"curses", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
WINDOWS_SIGNALS = {"SIGABRT", "SIGBREAK", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN"}


def missing_on_windows(source: str) -> set[str]:
    """What a module takes from the standard library while it is imported, and Windows lacks."""
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.If | ast.Try):
            return  # later, or guarded
        if isinstance(node, ast.Import):
            found.update({alias.name for alias in node.names} & UNIX)
        elif isinstance(node, ast.ImportFrom) and node.module in UNIX:
            found.add(node.module)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "signal":
            found.update({name for name in [node.attr] if name.startswith("SIG")} - WINDOWS_SIGNALS)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return found


def test_every_module_can_be_imported_on_windows():
    assert missing_on_windows("import os, fcntl\nfrom pwd import getpwnam\nSTOP = signal.SIGHUP, signal.SIGINT") == {
        "fcntl",
        "pwd",
        "SIGHUP",
    }
    assert {path: found for path in SOURCES if (found := missing_on_windows(path.read_text()))} == {}


def test_no_modules_import_each_other_not_even_within_functions():
    """Beyond import-linter's contracts, which compare siblings: a package and its own modules too."""
    graph = grimp.build_graph("aeic_lightning", "callbacks", "datamodules")
    needs = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    needs["aeic_lightning"] -= {"aeic_lightning.codec"}  # `aeic_lightning.Codec` is looked up when it is asked for
    graphlib.TopologicalSorter(needs).prepare()


def test_every_part_of_the_package_has_its_place_in_the_layers():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = {name for layer in contracts[0]["layers"] for name in layer.split(" : ")}
    parts = {f"aeic_lightning.{path.stem}" for path in (ROOT / "aeic_lightning").glob("*.py")}
    parts |= {f"aeic_lightning.{path.parent.name}" for path in (ROOT / "aeic_lightning").glob("*/__init__.py")}
    assert parts - {"aeic_lightning.__init__", "aeic_lightning.__main__"} == layers - {"callbacks", "datamodules"}


def test_tests_that_need_no_browser_run_without_playwright(forked):
    files = ["tests/study/test_report.py", "tests/study/test_complexity.py"]
    done = forked.finish("tests.without_playwright:collect", files)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(file in done.stdout for file in files)


def test_the_package_says_who_made_it_and_where_it_is():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert [author["name"] for author in PROJECT["authors"]] == [author["name"] for author in citation["authors"]]
    assert PROJECT["keywords"] == citation["keywords"]
    assert (
        f"Programming Language :: Python :: {PROJECT['requires-python'].removeprefix('>=')}" in PROJECT["classifiers"]
    )
    owner = re.fullmatch(r"https://github\.com/([\w-]+)/aeic_lightning", PROJECT["urls"]["Repository"])
    assert owner
    assert PROJECT["urls"]["Documentation"] == f"https://{owner[1]}.github.io/aeic_lightning/"


@pytest.mark.parametrize("name", ["tests", "pages"])
def test_a_workflow_pins_what_it_uses_and_runs_what_there_is(name):
    """GitHub's schema is not at hand: what can be wrong here are names of files, targets and versions."""
    jobs = yaml.load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text(), yaml.BaseLoader)["jobs"]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    ran = []
    for job in jobs.values():
        assert re.fullmatch(r"ubuntu-\d+\.\d+", job["runs-on"])
        assert int(job["timeout-minutes"]) <= 60
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), step
            assert "uses" not in step or re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]), step
            ran += [step["run"]] if "run" in step else []
            if version := step.get("with", {}).get("python-version"):
                assert PROJECT["requires-python"] == f">={version}"
    assert "bash .ci/run" in ran if name == "tests" else "make docs runtime" in ran
    if name == "pages":
        web = next(command for command in ran if "--web" in command).split()
        assert web[:3] == [".venv/bin/python", "-m", "aeic_lightning"]
        (uploaded,) = [s["with"]["path"] for s in jobs["publish"]["steps"] if "upload-pages" in s.get("uses", "")]
        assert Path(web[web.index("-o") + 1]).parent == Path(uploaded)
        parser = argparse.ArgumentParser()
        export.add_arguments(parser)
        assert parser.parse_args(web[4:]).web
    for command in ran:
        assert not command.startswith("make ") or set(command.split()[1:]) <= set(targets)
        assert not command.startswith("bash ") or (ROOT / command.split()[1]).is_file()


def test_the_dockerfile_is_sound():
    """By hadolint, and: a pinned base, known words, sources that exist, no root, a list as entry."""
    linter = Path(sys.executable).with_name("hadolint")
    linted = subprocess.run([linter, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (linted.returncode, linted.stdout) == (0, ""), linted.stdout + linted.stderr
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    by_kind = {kind: [rest for k, rest in lines if k == kind] for kind, _ in lines}
    assert set(by_kind) == {"FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD"}
    assert lines[0][0] == "FROM"
    assert re.fullmatch(r"python:\d+\.\d+-slim-\w+", by_kind["FROM"][0])
    assert all(place.startswith("/") for place in by_kind["WORKDIR"])
    ignored = (ROOT / ".dockerignore").read_text().split()
    for copied in by_kind["COPY"]:
        for source in copied.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source not in ignored
    assert {"aeic_lightning", "callbacks", "datamodules", "experiments"} <= set(" ".join(by_kind["COPY"]).split())
    assert by_kind["USER"] == ["1000"], "not root"
    assert all(line.startswith("[") for kind in ("ENTRYPOINT", "CMD") for line in by_kind[kind])
    assert not any("sudo" in run or "apt-get" in run or "latest" in run for run in by_kind["RUN"])
