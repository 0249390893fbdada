"""Experiment files: YAML with includes, interpolation and command-line overrides, resolved by OmegaConf.

An experiment file may hold, besides LightningCLI's own sections (`model`, `data`, `trainer`, `seed_everything`):

- `include: [FILE, ...]`: files, relative to this one, that are merged first, in order, none of them twice;
- `vars: {...}`: values for `${vars.name}` anywhere in the files; dropped after resolving;
- `variants: {enc: {...}}`: experiments that differ from the rest of the file in these settings. That of `student.yaml`
  is named as the file `student_enc.yaml` or `student/enc.yaml` would be, and may have an `include` of its own.

A file that is not in the working folder, or beside the one that includes it, is looked for among the experiments that
the project brings along.
A later file changes an earlier one: mappings are merged key by key; everything else, lists included, is replaced. Two
cases beside:

- a mapping with another `class_path` keeps those `init_args` of the earlier one that the new class takes as well;
- a mapping with numbers for keys changes elements of a list, as `--trainer.callbacks.1.init_args.every_n_steps=5` does.

Overrides are merged before anything is resolved, so that they reach every value that refers to them.
"""

import io
import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from aeic_lightning.errors import UserError, did_you_mean
from aeic_lightning.own_classes import HOME, arguments_of, class_or_none

MISSING = "???"  # OmegaConf's mark of a value that a later file must give
Classes = Literal["all", "parts", "none"]
WITHIN: dict[Classes, str | None] = {"all": "", "parts": "model.init_args.", "none": None}
ASIDE = "init_args of another class"  # while merging: what the class does not take, in case that a later one does


def load_config(files: Sequence[str | Path], overrides: Sequence[str] = (), classes: Classes = "all") -> dict[str, Any]:
    """Merge files, then `key.sub=value` overrides, resolve, and return plain values without `vars`.

    `classes` says whose arguments count (`merge`).

    Raises UserError for a missing file, bad YAML, an interpolation that leads nowhere, or a `vars` entry that nothing
    refers to (a misspelt one would have no effect).
    """
    config = _resolved(files, _layers(files, overrides), classes)
    config.pop("vars", None)
    return config


def with_sources(files: Sequence[str | Path], overrides: Sequence[str] = ()) -> str:
    """The resolved config of these files as YAML; behind each value, the file that it comes from and the values of
    other files that it replaces, the latest first.

    Raises UserError as `load_config` does.
    """
    layers = _layers(files, overrides)
    said: dict[tuple[str, ...], list[tuple[str, Any]]] = {}
    for source, layer in layers:
        for key, value in _leaves(layer):
            said.setdefault(key, []).insert(0, (source, value))
    return "".join(line + "\n" for line in _annotated(_resolved(files, layers), (), said))


def used_vars(file: str | Path, overrides: Sequence[str] = ()) -> set[str]:
    """Names of the `vars` that an experiment file, those that it includes, and the overrides refer to."""
    return set().union(*(_references(layer) for _, layer in _layers([file], overrides)))


def _leaves(value: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, (*key, str(name)))
    else:
        yield key, value


def _annotated(config: dict, key: tuple[str, ...], said: dict[tuple[str, ...], list[tuple[str, Any]]]) -> Iterator[str]:
    indent = "  " * len(key)
    for name, value in config.items():
        at = (*key, str(name))
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:"
            yield from _annotated(value, at, said)
            continue
        # A mapping that stands for `${...}` is set as a whole.
        (source, _), *replaced = next(said[at[:end]] for end in range(len(at), 0, -1) if at[:end] in said)
        comment = "; ".join([source, *(f"{_flow(old)} in {file}" for file, old in replaced if old != "???")])
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            yield f"{indent}{name}:  # {source}" + ("; replaces a list" if replaced else "")
            yield from (f"{indent}  - {_flow(item)}" for item in value)
        else:
            yield f"{indent}{name}: {_flow(value)}  # {comment}"


def _flow(value: Any) -> str:
    """On one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).removesuffix("...\n").strip()


Layers = list[tuple[str, dict]]
"""Where settings come from, and what is set there: an included file stands before the one that includes it."""


def _layers(files: Sequence[str | Path], overrides: Sequence[str]) -> Layers:
    try:
        own = cast(dict, OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)), resolve=False))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"{' '.join(overrides)}: {' '.join(str(error).split())}") from error
    layers = [layer for file in files for layer in _read(find_experiment(file), (), {})]
    return [*layers, ("command line", own)]


def _resolved(files: Sequence[str | Path], layers: Layers, classes: Classes = "all") -> dict[str, Any]:
    try:
        merged = merge([layer for _, layer in layers], classes)
        variables = cast(dict, OmegaConf.to_container(merged.get("vars") or OmegaConf.create(), resolve=False))
        root = variables.get("root")
        if isinstance(root, str) and not root.startswith("???"):
            merged.vars.root = os.path.expanduser(os.path.expandvars(root))  # what refers to it may not expand it
        _check_vars(merged, set().union(*(_references(layer) for _, layer in layers)), files)
        return _renamed(cast(dict[str, Any], OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"{' + '.join(map(str, files))}: {' '.join(str(error).split())}") from error


def _renamed(config: dict[str, Any]) -> dict[str, Any]:
    """An experiment of before a system took its model as an argument: of one with a codec it was the same as today's
    TeacherSystem."""
    model = config.get("model") or {}
    path = model.get("class_path") or ""
    if path.endswith("systems.CompressionSystem") and "codec" in (model.get("init_args") or {}):
        model["class_path"] = "aeic_lightning.systems.TeacherSystem"
    return config


def _references(config: dict) -> set[str]:
    """Names in `${vars.name}`, anywhere in a file."""
    return set(re.findall(r"\$\{vars\.(\w+)", str(config)))


def _check_vars(merged: Any, used: set[str], files: Sequence[str | Path]) -> None:
    # References of every file count, those included that a later file has overridden.
    # A sweep gives `root` and `name` to every run.
    given = [str(name) for name in merged.get("vars") or {} if name not in ("root", "name")]
    unused = next((name for name in given if name not in used), None)
    if unused is not None:
        hint = did_you_mean(unused, used) or (f"; there are {', '.join(sorted(used))}" if used else "")
        raise UserError(f"{' + '.join(map(str, files))}: vars.{unused} is set, but nothing refers to it{hint}")


def _read(path: Path, parents: tuple[Path, ...], seen: dict[Path, Path]) -> Layers:
    # `seen`: which file, or variant, has included which already.
    found = locate(path)
    if found is None:
        by = f", which {parents[-1]} includes" if parents else ""
        raise UserError(f"no config file {path}{by}{variants_beside(path)}")
    file, variant = found
    here = (path.resolve(), file.resolve())
    if any(parent.resolve() in here for parent in parents):
        raise UserError(f"{path} includes itself by way of {parents[-1]}; take one include out")
    if here[0] in seen:
        raise UserError(
            f"{parents[0]} includes {path} twice, by {seen[here[0]]} and by {parents[-1]}; the second time "
            "would set back what has been changed since the first: take one include out"
        )
    source = os.path.normpath(file)
    layers: Layers = []
    if here[1] not in seen:
        seen[here[1]] = parents[-1] if parents else path
        layers += _with_included(read(file), source, file, (*parents, file), seen)
    if variant:
        seen[here[0]] = parents[-1] if parents else path
        layers += _with_included(variants(file)[variant], f"{source} ({variant})", file, (*parents, path), seen)
    return layers


def _with_included(
    settings: dict, source: str, file: Path, parents: tuple[Path, ...], seen: dict[Path, Path]
) -> Layers:
    included = [find_experiment(name, file.parent) for name in settings.get("include") or []]
    layers = [layer for path in included for layer in _read(path, parents, seen)]
    return [*layers, (source, {key: value for key, value in settings.items() if key not in ("include", "variants")})]


# ---------------------------------------------------------------------- files and variants


def find_experiment(file: str | Path, folder: str | Path = "") -> Path:
    """An experiment as named, relative to `folder`, or else the one of that name among this project's own.

    `tiny/teacher_stage1.yaml` and `experiments/tiny/teacher_stage1.yaml` are the same then.
    """
    named = Path(file).expanduser()
    path = Path(folder, named)
    if named.is_absolute() or locate(path):
        return path
    return next((own for own in (HOME / named, HOME / "experiments" / named) if locate(own)), path)


def locate(path: Path) -> tuple[Path, str] | None:
    """The file that holds an experiment, and the name of its variant in there, "" if it is the file itself; None where
    there is no such experiment. Raises UserError for a file that cannot be read."""
    if path.is_file():
        return path, ""
    return next((found for found in _around(path) if found[1] in variants(found[0])), None)


def variants_beside(path: Path) -> str:
    """For the message that there is no such experiment: those of the file whose variant it would be."""
    for file, name in _around(path):
        if known := variants(file):
            return f"; {file} has the variants {', '.join(known)}{did_you_mean(name, known)}"
    return ""


def variants(file: Path) -> dict[str, dict]:
    """Name -> settings of the variants in a file. Raises UserError as `read` does."""
    found = read(file).get("variants") or {}
    if not isinstance(found, dict) or not all(isinstance(value, dict) for value in found.values()):
        raise UserError(f"{file}: variants is a mapping from names to settings, not {found!r}")
    return found


def read(file: Path) -> dict[str, Any]:
    """The content of a file, not to be changed. Raises UserError where it is no YAML mapping."""
    try:
        own = _parsed(file.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    if not isinstance(own, dict):
        raise UserError(f"{file} holds no settings; an experiment file is a YAML mapping")
    return own


@lru_cache(maxsize=512)  # a sweep reads the same files for each of its runs
def _parsed(text: str) -> Any:
    return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)


def _around(path: Path) -> Iterator[tuple[Path, str]]:
    """Files whose variant this path may name, and that variant's name."""
    words = path.stem.split("_")
    for end in range(len(words) - 1, 0, -1):
        file = path.with_name("_".join(words[:end]) + path.suffix)
        if file.is_file():
            yield file, "_".join(words[end:])
    file = path.parent.with_suffix(path.suffix) if path.parent.name else path
    if file.is_file():
        yield file, path.stem


# ---------------------------------------------------------------------- merging


def flat(value: Any, prefix: str = "", lists: bool = False) -> dict[str, Any]:
    """Nested settings as `model.init_args.codec` -> value. A list, and an empty mapping, is one value.

    With `lists`, a list that holds mappings is taken apart too: `trainer.callbacks.0.class_path`.
    """
    if isinstance(value, dict) and (value or not prefix):
        items = list(value.items())
    elif lists and isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = list(enumerate(value))
    else:
        return {prefix: value}
    return {k: v for key, item in items for k, v in flat(item, f"{prefix}.{key}".lstrip("."), lists).items()}


def merge(layers: Sequence[dict], classes: Classes = "all") -> DictConfig:
    """The settings of all layers, unresolved; a later layer wins. Raises UserError for an element that a list lacks.

    Where a layer changes a class, what the new one does not take goes. `classes` says of which that is known, since it
    imports them: of all; of the system's parts alone, for who reads sizes; of none, for who reads no class's arguments.
    """
    merged: Any = {}
    for layer in layers:
        merged = _merge(merged, layer, "", WITHIN[classes])
    return OmegaConf.create(_without_aside(merged))


def _without_aside(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_aside(inner) for name, inner in value.items() if name != ASIDE}
    return [_without_aside(inner) for inner in value] if isinstance(value, list) else value


def _merge(old: Any, new: Any, key: str, within: str | None) -> Any:
    # `within`: where the classes are whose arguments count; None: nowhere.
    if new == MISSING and old is not None:
        return old
    if isinstance(old, list) and isinstance(new, dict) and new and all(str(name).isdigit() for name in new):
        return _with_elements(old, new, key, within)
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    other = "class_path" in old and new.get("class_path", old["class_path"]) != old["class_path"]
    if other and within is not None and key.startswith(within):
        old = _with_arguments_of(new["class_path"], old)
    return old | {
        name: _merge(old[name], value, f"{key}.{name}".lstrip("."), within) if name in old else value
        for name, value in new.items()
    }


def _with_elements(old: list, new: dict, key: str, within: str | None) -> list:
    changed = list(old)
    for name, value in new.items():
        if int(name) >= len(old):
            raise UserError(f"{key}.{name} is set, but {key} is a list of {len(old)}, numbered from 0")
        changed[int(name)] = _merge(old[int(name)], value, f"{key}.{name}", within)
    return changed


def _with_arguments_of(class_path: str, old: dict) -> dict:
    """The mapping with those of its arguments that the class takes; the others are set aside."""
    kind, arguments = class_or_none(class_path), old.get("init_args") or {}
    if kind is None or not isinstance(arguments, dict):
        return old
    known = arguments_of(kind)
    arguments = old.get(ASIDE, {}) | arguments
    return old | {
        "init_args": {name: value for name, value in arguments.items() if name in known},
        ASIDE: {name: value for name, value in arguments.items() if name not in known},
    }


# ---------------------------------------------------------------------- overrides


def parse_overrides(words: list[str]) -> list[str]:
    """Command-line words `--a.b=c` or `--a.b c` (or `--flag` for true) -> OmegaConf's `a.b=c`."""
    overrides: list[str] = []
    words = list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise UserError(f"unexpected argument {word!r}; settings are written --section.name=value")
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        overrides.append(f"{key}={value}")
    return overrides


def as_override(key: str, value: Any) -> str:
    """`key=value` that is read as exactly this value, with its type: the text "007" is quoted, a bare 7 is a number."""
    if isinstance(value, str) and _reads_as_itself(value):
        return f"{key}={value}"
    return f"{key}={as_yaml([value], default_flow_style=True)[1:-2]}"


def as_yaml(value: Any, default_flow_style: bool | None = False) -> str:
    """YAML that every reader takes for these values, with their types."""
    return yaml.dump(
        value, Dumper=_QuotingDumper, default_flow_style=default_flow_style, width=float("inf"), sort_keys=False
    )


@lru_cache(maxsize=4096)  # the same words come again and again, and OmegaConf takes a millisecond
def _reads_as_itself(text: str) -> bool:
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"x={text}"]), resolve=False) == {"x": text}
    except (OmegaConfBaseException, yaml.YAMLError):
        return False


class _QuotingDumper(yaml.SafeDumper):
    """Quotes more texts than PyYAML does: OmegaConf and jsonargparse read some as numbers that it does not, as 1e3."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = None if _reads_as_itself(text) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_QuotingDumper.add_representer(str, _represent_text)
