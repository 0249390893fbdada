"""This project's top-level packages, and a user's own classes beside them.

`callbacks` and `datamodules` are top-level packages, so that a class there has a short path in YAML. A user's working
folder may well have packages of these names. Both are found: a module or class of this project by its name first, then
one of the working folder. Other modules of the working folder are found after all installed ones, so that none of them
stands in for a library.
"""

import ast
import hashlib
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from inspect import Parameter, getsource, signature
from pathlib import Path
from textwrap import dedent
from typing import Any, TypeVar

from aeic_lightning.errors import UserError, did_you_mean

Kind = TypeVar("Kind")

HOME = Path(__file__).parents[1]
"""Where this project's top-level packages and `experiments` are: the checkout, or site-packages."""
PACKAGES = ("callbacks", "datamodules")


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


# ---------------------------------------------------------------------- class paths


MOVED = {
    "aeic_lightning.models.encoders.star": "aeic_lightning.models.layers",
    "aeic_lightning.models.codec.transforms": "aeic_lightning.models.layers",
    "aeic_lightning.models.encoders.micro": "aeic_lightning.models.integer",
    "aeic_lightning.models.codec.micro": "aeic_lightning.models.integer",
}
"""Where the classes of earlier versions' modules are: configs and checkpoints name them."""


def moved(path: str) -> str:
    """The class path that one of an earlier version stands for today; others as they are."""
    module, _, name = path.rpartition(".")
    return f"{MOVED[module]}.{name}" if module in MOVED else path


def find_class(path: str, where: str, base: type[Kind] = object) -> type[Kind]:
    """The class that a config names by its path; it is not called.

    Args:
        path: such as `my_package.MyEncoder`.
        where: the setting, for messages: `codec.encoder`.
        base: what the class must be or derive from.

    Raises UserError for what cannot be imported, and for another kind of class.
    """
    module, _, name = moved(str(path)).rpartition(".")
    if not module:
        raise UserError(f"{where}: {path} names no module; write the whole path, as in my_package.{path}")
    try:
        loaded = import_module(module)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{where}: class_path {path} cannot be imported ({error}); put it on PYTHONPATH or correct class_path"
        ) from error
    try:
        found = getattr(loaded, name)
    except AttributeError:
        hint = did_you_mean(name, public_names(loaded)) or "; correct class_path"
        raise UserError(f"{where}: module {module} has no {name}{hint}") from None
    if not (isinstance(found, type) and issubclass(found, base)):
        # By the shortest path: that of the package that shows the class, not of the file that defines it.
        parts = base.__module__.split(".")
        packages = [".".join(parts[: n + 1]) for n in range(len(parts))]
        home = next(package for package in packages if getattr(sys.modules[package], base.__name__, None) is base)
        raise UserError(f"{where}: {path} is no subclass of {home}.{base.__name__}; give one")
    return found


def class_or_none(path: Any) -> type | None:
    """The class of a path; None where `find_class` would raise."""
    try:
        return find_class(str(path), "")
    except UserError:
        return None


def public_names(module: Any) -> list[str]:
    """What a module shows to whoever imports from it."""
    return [name for name in dir(module) if not name.startswith("_")]


def arguments_of(kind: Any) -> dict[str, Parameter]:
    """What the constructor of a class takes by name, those arguments included that it hands on to its bases."""
    found: dict[str, Parameter] = {}
    given: tuple[int, set[str]] = (0, set())
    for base in getattr(kind, "__mro__", ()):
        if "__init__" not in vars(base) or base is object:
            continue
        try:
            parameters = signature(base.__init__, eval_str=True).parameters
        except NameError:  # an annotation that is there for type checkers alone
            parameters = signature(base.__init__).parameters
        named = [(name, p) for name, p in parameters.items() if name != "self" and p.kind not in _NOT_BY_NAME]
        by_position, by_name = given
        found = {name: p for name, p in named[by_position:] if name not in by_name} | found
        if not any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values()):
            break
        given = _given_to_base(base.__init__)
    return found


def _given_to_base(constructor: Any) -> tuple[int, set[str]]:
    """What a constructor decides of its base's arguments: how many by position, and which by name."""
    try:
        tree = ast.parse(dedent(getsource(constructor)))
    except (OSError, TypeError, SyntaxError):  # without source
        return 0, set()
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in calls:
        if ast.unparse(call.func) == "super().__init__":
            return len(call.args), {keyword.arg for keyword in call.keywords if keyword.arg}
    return 0, set()


_NOT_BY_NAME = (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL, Parameter.POSITIONAL_ONLY)

# ---------------------------------------------------------------------- sources


LIBRARIES = {
    *(
        "torch",
        "torchvision",
        "torchmetrics",
        "lightning",
        "lightning_fabric",
        "pytorch_lightning",
        "diffusers",
        "timm",
    ),
    *("peft", "transformers", "numpy", "scipy", "PIL"),
}
"""Packages whose version in the record of a run says enough."""
SOURCES = "sources"
"""Folder with copies of a user's own modules, in the folder of a run, or of a stored model."""


def own_sources(config: Any) -> dict[str, Path]:
    """Module -> its file, of the user's own classes that a config names by `class_path`, sorted by name.

    Beside the modules of the classes these are the own ones that they import, of the same package or not installed.
    What cannot be imported is left out.
    """
    found: dict[str, Path] = {}
    waiting = [path.rpartition(".")[0] for path in _class_paths(config)]
    while waiting:
        name = waiting.pop()
        file = None if name in found else _own_file(name)
        if file is not None:
            found[name] = file
            top = name.partition(".")[0]
            waiting += [other for other in _imports(name, file) if _same_author(other, top)]
    return dict(sorted(found.items()))


def source_digests(sources: Mapping[str, Path]) -> dict[str, str]:
    """Module -> SHA-256 of its file."""
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in sources.items()}


def copy_sources(sources: Mapping[str, Path], folder: Path) -> None:
    """Copy modules into a folder, as the tree that Python would import them from. None without any."""
    for name, file in sources.items():
        parts = name.split(".")
        target = folder.joinpath(*parts, "__init__.py") if file.name == "__init__.py" else folder.joinpath(*parts)
        target = target if target.suffix == ".py" else target.with_name(f"{target.name}.py")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())


def _class_paths(config: Any) -> Iterator[str]:
    if isinstance(config, Mapping):
        if isinstance(config.get("class_path"), str):
            yield config["class_path"]
        config = list(config.values())
    if isinstance(config, list | tuple):
        for item in config:
            yield from _class_paths(item)


def _own_file(name: str) -> Path | None:
    top = name.partition(".")[0]
    if not name or top in LIBRARIES or top in sys.stdlib_module_names or top == "aeic_lightning":
        return None
    try:
        module = sys.modules.get(name) or import_module(name)
    except Exception:  # whoever builds the class says what is wrong
        return None
    file = Path(getattr(module, "__file__", None) or "")
    ours = top in PACKAGES and file.is_relative_to(HOME / top)
    return file if file.suffix == ".py" and file.is_file() and not ours else None


def _same_author(name: str, top: str) -> bool:
    module = sys.modules.get(name)
    file = str(getattr(module, "__file__", None) or "")
    return bool(file) and (name.partition(".")[0] == top or "site-packages" not in Path(file).parts)


def _imports(name: str, file: Path) -> Iterator[str]:
    """Modules that a file imports, as far as Python has them."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
            base = base if node.level else str(node.module)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
