"""Small faults put into the code, one at a time: does a test fail?

    python -m tests.robustness.mutants [--count 160] [--seed 0] [--minutes N] [--log FILE]

Faults that a test suite once let through come first (`KNOWN`). Then `count` are drawn at random, the same number from
each group of modules: a comparison, an operator or a number is replaced, a condition is turned round, a call is left
out. Each runs the fast tests of its module up to the first failure, in a process that is forked after the libraries
were imported. Prints the test that found each fault, then a table. A fault that no test has found must be understood:
some change nothing that matters. Exit code 1 if one of `KNOWN` was not found. With `--minutes` it ends early, after a
whole fault; the order is random, so what was tried is a fair sample.
"""

import argparse
import ast
import contextlib
import importlib.machinery
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import spec_from_file_location
from pathlib import Path

from tests.robustness.runs import ROOT, import_everything, wait

TAP_TERMS = ["losses/test_tap_terms.py", "systems/test_distillation.py"]
GROUPS = {
    "losses": {
        "adversarial": ["losses/test_adversarial.py"],
        "term": ["losses/test_rate.py", "losses/test_objective.py", "losses/test_chroma.py"],
        "tap_term": TAP_TERMS,
        "*": ["losses/test_objective.py", "losses/test_chroma.py", "systems/test_compression.py"],
    },
    "systems": {
        "averaging": ["systems/test_averaging.py"],
        "optimization": ["systems/test_guards.py", "systems/test_optimization.py"],
        "graphed": ["systems/test_graphed.py"],
        "teachers": ["systems/test_distillation.py", "systems/test_online.py"],
        "*": ["systems/test_distillation.py", "systems/test_compression.py", "systems/test_guards.py"],
    },
    "bitstream": {
        "exact": ["bitstream/test_bitstream.py", "bitstream/test_exact.py"],
        "products": ["bitstream/test_products.py", "bitstream/test_rows.py"],
        "wire": ["bitstream/test_range_coder.py", "bitstream/test_bitstream.py", "bitstream/test_levels.py"],
        "stream": ["bitstream/test_range_coder.py", "bitstream/test_bitstream.py", "bitstream/test_levels.py"],
        "sender": ["bitstream/test_bitstream.py"],
    },
    "study": {
        "bd_rate": ["study/test_bd_rate.py"],
        "study": ["study/test_curve_names.py", "study/test_bd_rate.py", "study/test_results.py"],
        "evaluate": ["study/test_evaluate.py", "study/test_evaluate_levels.py"],
    },
}
"""Modules of each group and their fast tests; "*" are the others of the package."""
KNOWN = [
    (
        "the teacher in training mode while its taps are taken",
        "systems/teachers.py",
        "return self.model.compute_taps(x, self.system.objective.teacher_taps, level)",
        "net = self.model.train()\n        taps = net.compute_taps(x, self.system.objective.teacher_taps, level)\n"
        "        net.eval()\n        return taps",
        ["systems/test_distillation.py::test_the_teacher_is_in_evaluation_mode_while_its_taps_are_taken"],
    ),
    (
        "pictures joined by place",
        "study/evaluate.py",
        "enumerate(reconstructions.names)",
        "enumerate(sorted(reconstructions.names))",
        ["study/test_evaluate.py::test_pairs_are_joined_by_name_not_by_place"],
    ),
    (
        "taps joined by place",
        "losses/tap_term.py",
        "theirs = output.taps[match.tap], teacher[match.teacher_tap or match.tap]",
        "theirs = output.taps[match.tap], teacher[sorted(teacher)[sorted(self.student_taps).index(match.tap)]]",
        ["systems/test_distillation.py::test_taps_are_joined_by_name_not_by_place"],
    ),
    (
        "the tables left out of the fingerprint",
        "bitstream/stream.py",
        "    digest.update(shared.to_bytes())\n",
        "",
        ["bitstream/test_bitstream.py::test_the_tables_are_part_of_the_fingerprint"],
    ),
]
"""Faults that were once not found: what they are, file, text, replacement, tests."""
SECONDS = 300  # of the processor for the tests of one fault; what takes longer is found, as an endless loop would be

# ---------------------------------------------------------------------- faults

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip

Site = tuple[int, str, Callable[[], None]]  # line, what is changed, the change of the tree


def sites(tree: ast.AST) -> Iterator[Site]:
    """All faults that can be put into a syntax tree. Annotations, texts and what errors say are left alone."""
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns"):
            continue
        for node in value if isinstance(value, list) else [value]:
            skipped = ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom
            if isinstance(node, ast.AST) and not isinstance(node, skipped):
                yield from _at(node)
                yield from sites(node)


def _at(node: ast.AST) -> Iterator[Site]:
    line, before = getattr(node, "lineno", 0), ast.unparse(node).split("\n")[0][:70]

    def put(name: str, value: object) -> Callable[[], None]:
        return lambda: setattr(node, name, value)

    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARISONS:
            yield line, f"{before}: {COMPARISONS[type(op)].__name__}", put("ops", [COMPARISONS[type(op)]()])
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op) if type(op) in OPERATORS:
            if not (isinstance(node, ast.BinOp) and isinstance(op, ast.BitOr)):  # mostly unions of types
                yield line, f"{before}: {OPERATORS[type(op)].__name__}", put("op", OPERATORS[type(op)]())
        case ast.Constant(value=bool() as value):
            yield line, f"{before}: {not value}", put("value", not value)
        case ast.Constant(value=int() | float() as value):
            yield line, f"{before}: {value + 1}", put("value", value + 1)
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            yield line, f"{before}: not", put("test", ast.UnaryOp(ast.Not(), test))
        case ast.Expr(value=ast.Call()):
            yield line, f"{before}: left out", put("value", ast.Constant(None))
        case ast.UnaryOp(op=ast.USub()):
            yield line, f"{before}: +", put("op", ast.UAdd())


def faults(path: Path) -> list[tuple[int, str]]:
    """Line and description of all faults of a file."""
    return [(line, what) for line, what, _ in sites(ast.parse(path.read_text()))]


def with_fault(path: Path, number: int) -> ast.Module:
    """The syntax tree of a file with one of its faults."""
    tree = ast.parse(path.read_text())
    list(sites(tree))[number][2]()
    return ast.fix_missing_locations(tree)


# ---------------------------------------------------------------------- trying one


class Finder:
    """Imports one module from other code than its file has."""

    def __init__(self, path: Path, code: object) -> None:
        self.path, self.code = path, code
        self.name = ".".join(path.relative_to(ROOT).with_suffix("").parts)

    def find_spec(self, name: str, path: object = None, target: object = None):
        if name != self.name:
            return None
        code = self.code

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname):
                return code

        return spec_from_file_location(name, self.path, loader=Loader(name, str(self.path)))


def found_by(path: Path, code: object, tests: list[str], log: Path) -> str | None:
    """The test that fails while a module has this code; None if all pass."""
    pid = os.fork()
    if not pid:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(ROOT)
        sys.meta_path.insert(0, Finder(path, code))
        import pytest

        chosen = [str(ROOT / "tests" / name) for name in tests]
        code = 70
        try:
            code = int(pytest.main(["-x", "-q", "-m", "not slow", *chosen]))
        finally:
            os._exit(code)
    code = wait(pid)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # what its tests have left
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", log.read_text(errors="replace"), re.M)
    return None if code == 0 else failed[1].removeprefix("tests/") if failed else f"exit code {code}"


def drawn(count: int, seed: int) -> list[tuple[str, Path, int, list[str]]]:
    """Group, file, number of the fault and tests: the same number from each group, in random order."""
    generator, chosen = random.Random(seed), []
    for group, modules in GROUPS.items():
        pool = []
        for path in sorted((ROOT / "aeic_lightning" / group).glob("*.py")):
            tests = modules.get(path.stem, modules.get("*"))
            if tests and path.stem != "__init__":
                pool += [(group, path, number, tests) for number in range(len(faults(path)))]
        chosen += generator.sample(pool, min(count // len(GROUPS), len(pool)))
    generator.shuffle(chosen)
    return chosen


def known() -> Iterator[tuple[str, Path, object, list[str]]]:
    """The faults of `KNOWN`. Raises AssertionError where the code is not what it was."""
    for what, name, old, new, tests in KNOWN:
        path = ROOT / "aeic_lightning" / name
        source = path.read_text()
        assert source.count(old) == 1, f"{name}: {old!r} is there {source.count(old)} times"
        yield what, path, compile(source.replace(old, new), str(path), "exec"), tests


def import_libraries() -> None:
    """All that the tests import, less this project's own modules."""
    import_everything()
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import skimage.metrics  # noqa: F401

    for name in list(sys.modules):
        if re.match(r"(aeic_lightning|callbacks|datamodules)(\.|$)", name):
            del sys.modules[name]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--log", type=Path, help="keep the output of the tests of the last fault there")
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    log = args.log or Path(tempfile.mkdtemp()) / "log.txt"
    import_libraries()
    well, tried, found = True, Counter(), Counter()
    for what, path, code, tests in known():
        test = found_by(path, code, tests, log)
        well &= test is not None
        tried["known"] += 1
        found["known"] += test is not None
        print(f"{path.name}: {what}: {test or 'NOT FOUND'}", flush=True)
    for group, path, number, tests in drawn(args.count, args.seed):
        if time.monotonic() > until:
            break
        line, what = faults(path)[number]
        code = compile(with_fault(path, number), str(path), "exec")
        test = found_by(path, code, tests, log)
        tried[group] += 1
        found[group] += test is not None
        print(f"{group}/{path.name}:{line} {what}: {test or 'NOT FOUND'}", flush=True)
    print("\n| code | faults | found by a test |\n|---|---|---|")
    for group in tried:
        print(f"| {group} | {tried[group]} | {found[group]} |")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
