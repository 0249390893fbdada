"""Lightning callbacks: metrics, pictures and curves of a run. Name them by class path in YAML.

All work with any system whose validation_step and test_step return
{"name": list[str], "x": (B, 3, H, W) in [-1, 1], "x_hat": the same, "bits_estimate": (B,), "bytes": list[int] or None},
the last being the sizes of the images' files.
They observe only: training with them is bit-identical to training without.
"""

from pkgutil import extend_path
from typing import Any

from aeic_lightning.own_classes import own_attribute

__path__ = extend_path(__path__, __name__)  # a folder `callbacks` in the working folder comes second


def __getattr__(name: str) -> Any:
    return own_attribute(__name__, name)
