"""Lightning callbacks: figures, pictures and curves of a run. Name them by class path in YAML.

All work with any system whose validation_step and test_step return
{"name": list[str], "x": (B, 3, H, W) in [-1, 1], "x_hat": the same, "bits_estimate": (B,), "bytes": list[int] or None},
the last being the sizes of the images' files.
They observe only: training with them is bit-identical to training without.
"""
