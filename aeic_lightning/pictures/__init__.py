"""Image files, and opened images, as 8-bit sRGB: the one way in for commands, Python, the page and `send.py`.

Python's library, numpy and Pillow alone, and nothing of the rest of the project: `export` copies this folder beside
`send.py`, so that a sender without the package sees the same pixels.
"""

from .reading import FORMATS, MAX_PIXELS, TRANSPOSE, PictureError, pixels_of, read, size, to_rgb

__all__ = ["FORMATS", "MAX_PIXELS", "TRANSPOSE", "PictureError", "pixels_of", "read", "size", "to_rgb"]
