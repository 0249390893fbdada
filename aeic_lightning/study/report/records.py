"""What the page takes from run folders beside the metrics: tap losses, configs, pictures."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aeic_lightning.errors import UserError
from aeic_lightning.study.results import Result

TAP_PREFIX = "train/distill/"
MOST_POINTS = 200


def tap_losses(folder: Path) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
    """Loss of each distilled tap from a run's TensorBoard events: side -> tap -> (steps, losses), thinned if long.

    A step that was logged twice, before and after a resume, has the later loss.
    """
    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    found: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for tag in sorted(events.Tags()["scalars"], key=_tap_order):
        side, _, tap = tag.removeprefix(TAP_PREFIX).partition("/")
        if not tag.startswith(TAP_PREFIX) or side not in ("encoder", "decoder"):
            continue
        by_step = {event.step: event.value for event in sorted(events.Scalars(tag), key=lambda e: e.wall_time)}
        steps = sorted(by_step)
        every = -(-len(steps) // MOST_POINTS)
        steps = sorted({*steps[::every], steps[-1]})
        found.setdefault(side, {})[tap] = (steps, [float(f"{by_step[step]:.5g}") for step in steps])
    return found


def _tap_order(tag: str) -> tuple:
    order = ("y", "z", "phi", "y_hat", "l_T", "l_res", "l_0")
    tap = tag.rsplit("/", 1)[-1]
    return (order.index(tap) if tap in order else len(order), tap)


def config_differences(results: Sequence[Result]) -> tuple[list[str], list[tuple[str, list[str | None]]]]:
    """Settings in which runs differ: the keys, and (run, its values) in the same order; None where it has no such key.

    A run's own folder is written as RUN, so that paths into it do not count as differences.
    """
    flat: list[tuple[str, dict[str, str]]] = []
    for result in results:
        file = result.folder / "config.yaml" if result.folder else None
        if file is None or not file.is_file():
            continue
        try:
            config = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)
            own = str(config.get("trainer", {}).get("default_root_dir") or result.folder)
        except (yaml.YAMLError, AttributeError, UnicodeDecodeError) as error:
            raise UserError(f"{file} is no config of a run: {' '.join(str(error).split())}") from error
        flat.append((result.name, {k: v.replace(own, "RUN") for k, v in flatten(config).items()}))
    keys = dict.fromkeys(key for _, config in flat for key in config)
    differing = [key for key in keys if len({config.get(key) for _, config in flat}) > 1]
    return differing, [(name, [config.get(key) for key in differing]) for name, config in flat]


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as `a.b` -> text. A list is one setting, except one of classes."""
    if isinstance(value, dict) and value:
        return {k: v for key, item in value.items() for k, v in flatten(item, f"{prefix}{key}.").items()}
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        if all(isinstance(item, dict) and "class_path" in item for item in value):
            items = [(item["class_path"].rsplit(".", 1)[-1], item) for item in value]
            return {k: v for name, item in items for k, v in flatten(item, f"{prefix}{name}.").items()}
        if all(isinstance(item, dict) and {"tap", "side"} <= set(item) for item in value):
            return {prefix[:-1]: _matched_taps(value)}
    return {prefix[:-1]: "null" if value is None else str(value)}


def _matched_taps(matches: list[dict[str, Any]]) -> str:
    """Matched taps by side: `encoder: y, z; decoder: l_0`, with what of a match is not its default."""
    sides: dict[str, list[str]] = {}
    for match in matches:
        theirs = match.get("teacher_tap")
        weight = match.get("weight", 1.0)
        text = match["tap"] + (f" to {theirs}" if theirs else "") + (f" x {weight}" if weight != 1 else "")
        sides.setdefault(match["side"], []).append(text)
    return "; ".join(f"{side}: {', '.join(taps)}" for side, taps in sides.items())


class Pictures:
    """Pictures as data URIs within a budget of bytes, each file once.

    All are embedded in one way, the first that fits: the PNG files as they are, JPEG at falling quality, then JPEG at
    half the size, and so on. `described` says which.
    """

    WAYS = (("PNG", 0, 1), ("JPEG", 95, 1), ("JPEG", 90, 1), ("JPEG", 80, 1), ("JPEG", 80, 2), ("JPEG", 75, 4))

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._places: dict[bytes, int] = {}
        self.described = ""

    def __len__(self) -> int:
        return len(self._places)

    def add(self, path: Path) -> int:
        """Take a picture; returns its place in what `embed` gives. Equal files share one."""
        try:
            content = path.read_bytes()
            Image.open(io.BytesIO(content)).verify()
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(
                f"{path} is no readable picture: {error}; "
                "validate the run again, or leave pictures out with --max-images 0"
            ) from error
        if content not in self._places:
            self._places[content] = len(self._places)
        return self._places[content]

    def embed(self) -> list[str]:
        """Data URIs in the order in which the pictures were taken."""
        encoded: list[bytes] = []
        for kind, quality, shrink in self.WAYS:
            encoded, spent = [], 0
            for content in self._places:
                encoded.append(content if kind == "PNG" else _jpeg(content, quality, shrink))
                spent += len(encoded[-1])
                if spent * 4 / 3 > self.budget:
                    break
            else:
                break
        else:
            raise UserError(
                f"{len(self)} pictures do not fit into {self.budget / 1e6:.0f} MB; name fewer runs, or leave "
                "pictures out with --max-images"
            )
        self.described = "as the PNG files that the runs wrote"
        if kind == "JPEG":
            size = "" if shrink == 1 else f" and shrunk to 1/{shrink} of their width and height"
            self.described = (
                f"recompressed for this page as JPEG, quality {quality}{size}; metrics are of the originals"
            )
        head = f"data:image/{kind.lower()};base64,"
        return [head + base64.b64encode(content).decode() for content in encoded]


def _jpeg(content: bytes, quality: int, shrink: int) -> bytes:
    image = Image.open(io.BytesIO(content)).convert("RGB")
    if shrink > 1:
        image = image.resize((max(1, image.width // shrink), max(1, image.height // shrink)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
    return buffer.getvalue()
