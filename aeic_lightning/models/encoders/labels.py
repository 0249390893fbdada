"""What tells one encoder from another in tables, curves and TensorBoard."""

from collections.abc import Mapping
from typing import Any

OTHERS = ("context", "h_a", "h_s", "g_s")
STAR = "aeic_lightning.models.encoders.star.StarEncoder"


def encoder_labels(codec: Mapping[str, Any]) -> dict[str, int | str]:
    """The labels of the encoder in a `CodecConfig` as plain values.

    Other parts that are given by class path have a label of their name: {context: "CheckerboardContext width=56"}.
    A StarEncoder has `depth` (a number where all stages have the same, so that it sorts; else all, as in 1-1-2-2-2)
    and `widths`. Any other has `encoder`: its class and arguments, as in `MyEncoder width=48`.
    """
    encoder = codec.get("encoder")
    parts: dict[str, int | str] = {name: _part(codec[name]) for name in OTHERS if codec.get(name)}
    if encoder and encoder.get("class_path") != STAR:
        return {"encoder": _part(encoder)} | parts
    star = (encoder.get("init_args") or {}) if encoder else codec
    labels: dict[str, int | str] = {}
    if depths := star.get("depths"):
        labels["depth"] = depths[0] if len(set(depths)) == 1 else _short(depths)
    if widths := star.get("widths"):
        labels["widths"] = _short(widths)
    return labels | parts


def _part(part: Mapping[str, Any]) -> str:
    name = str(part.get("class_path")).rsplit(".", 1)[-1]
    return " ".join([name, *(f"{key}={_short(value)}" for key, value in (part.get("init_args") or {}).items())])


def _short(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
