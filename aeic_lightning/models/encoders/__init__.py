"""Encoders: what can stand as g_a, image (B, 3, H, W) in [-1, 1] -> y (B, M, H/s, W/s).

Any `nn.Module` with that signature will do, named by class path: `docs/howto_encoder.md`.
"""
