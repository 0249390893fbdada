"""Distillation studies of ultra-low-bitrate learned image codecs."""

__version__ = "0.1.0"
