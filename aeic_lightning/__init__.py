"""Distillation studies of ultra-low-bitrate learned image codecs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aeic_lightning.codec import Codec as Codec

__version__ = "0.1.0"


def __dir__() -> list[str]:
    return sorted([*globals(), "Codec"])


def __getattr__(name: str) -> Any:
    if name == "Codec":
        # Not at the top: a command that only prints its help must not wait for torch.
        from aeic_lightning.codec import Codec

        return Codec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
