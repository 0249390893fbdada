"""Streams: range coding, exact arithmetic and the `.aeic` file."""
