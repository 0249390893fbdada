"""What tells one encoder from another in tables, curves and TensorBoard."""

from collections.abc import Mapping
from typing import Any

STAR = "aeic_lightning.models.encoders.star.StarEncoder"


def encoder_labels(codec: Mapping[str, Any]) -> dict[str, int | str]:
    """The labels of the encoder in a `CodecConfig` as plain values.

    A StarEncoder has `depth` (a number where all stages have the same, so that it sorts; else all, as in 1-1-2-2-2)
    and `widths`. Any other has `encoder`: its class and arguments, as in `MyEncoder width=48`.
    """
    encoder = codec.get("encoder")
    if encoder and encoder.get("class_path") != STAR:
        arguments = encoder.get("init_args") or {}
        name = str(encoder.get("class_path")).rsplit(".", 1)[-1]
        return {"encoder": " ".join([name, *(f"{key}={_short(value)}" for key, value in arguments.items())])}
    star = (encoder.get("init_args") or {}) if encoder else codec
    labels: dict[str, int | str] = {}
    if depths := star.get("depths"):
        labels["depth"] = depths[0] if len(set(depths)) == 1 else _short(depths)
    if widths := star.get("widths"):
        labels["widths"] = _short(widths)
    return labels


def _short(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
