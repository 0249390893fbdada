"""This project's top-level packages, and a user's own classes beside them.

`callbacks` and `datamodules` are top-level packages, so that a class there has a short path in YAML. A user's working
folder may well have packages of these names. Both are found: a module or class of this project by its name first, then
one of the working folder. Other modules of the working folder are found after all installed ones, so that none of them
stands in for a library.
"""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

HOME = Path(__file__).parents[1]
"""Where this project's top-level packages and `experiments` are: the checkout, or site-packages."""
PACKAGES = ("callbacks", "datamodules")


class _ProjectPackages:
    """Finds `callbacks` and `datamodules` of this project, wherever the working folder is on the path."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(HOME)]) if name in PACKAGES else None


def find_own_classes() -> None:
    """Let a file of the working folder be named by class path. Once a process, before these packages are imported."""
    here = os.getcwd()
    if not os.path.samefile(here, HOME):
        # `python -m` puts it first.
        sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or here) != here]
    if here not in sys.path:
        sys.path.append(here)
    if _ProjectPackages not in sys.meta_path:
        sys.meta_path.insert(0, _ProjectPackages)


def own_attribute(package: str, name: str) -> Any:
    """What the working folder's package of the same name defines in its `__init__.py`.

    For `__getattr__` of the project's package, whose `__path__` holds that folder. Raises AttributeError.
    """
    for folder in map(Path, list(sys.modules[package].__path__)[1:]):
        module = f"{package}.__init__of_{folder.parent.name}"
        file = folder / "__init__.py"
        if name.startswith("__") or not file.is_file():
            continue
        if module not in sys.modules:
            spec = spec_from_file_location(module, file)
            if spec is None or spec.loader is None:
                continue
            sys.modules[module] = module_from_spec(spec)
            try:
                spec.loader.exec_module(sys.modules[module])
            except BaseException:
                del sys.modules[module]
                raise
        if hasattr(sys.modules[module], name):
            return getattr(sys.modules[module], name)
    raise AttributeError(f"module {package!r} has no attribute {name!r}")


def find_experiment(file: str | Path, folder: str | Path = "") -> Path:
    """An experiment file as named, relative to `folder`, or else the one of that name among this project's own.

    `tiny/teacher_stage1.yaml` and `experiments/tiny/teacher_stage1.yaml` are the same then.
    """
    named = Path(file).expanduser()
    path = Path(folder, named)
    if path.is_file() or named.is_absolute():
        return path
    return next((own for own in (HOME / named, HOME / "experiments" / named) if own.is_file()), path)
