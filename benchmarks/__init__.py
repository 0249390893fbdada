"""Measurements behind the tables in docs/: `python -m benchmarks.NAME`. Run from the repository."""
