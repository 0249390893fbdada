"""One process of `verify`: encodes and decodes files under the settings it is given, and prints what came out.

Reads a JSON object from standard input: {"checkpoint", "threads", "onednn", "channels_last", "kernel", "fast",
"encode": [[image, stream], ...], "decode": [stream, ...]}.
Prints {"encode": {stream: SHA-256 of the latents}, "decode": {stream: SHA-256 of the latents, or "error: ..."}}.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch

from aeic_lightning.bitstream import products
from aeic_lightning.bitstream.stream import Bitstream, Decoded, Encoded
from aeic_lightning.checkpoints.checkpoint import load_model
from aeic_lightning.errors import UserError
from aeic_lightning.images import from_uint8, read_image
from aeic_lightning.torch_settings import assume_bfloat16


def digest(latents: Encoded | Decoded) -> str:
    """SHA-256 of z_hat and y_hat."""
    return hashlib.sha256(b"".join(part.astype("<i4").tobytes() for part in latents.integers())).hexdigest()


def run(request: dict) -> dict:
    """Answer a request; see the module."""
    torch.set_num_threads(request["threads"])
    torch.backends.mkldnn.enabled = request["onednn"]
    products.force(request["kernel"])
    assume_bfloat16(True)  # "fast" is to differ, however slow
    model = load_model(request["checkpoint"], receiver=False)  # latents are compared, and no picture is made
    if request["channels_last"]:
        model = model.to(memory_format=torch.channels_last)
    bitstream = Bitstream(model, fast=request["fast"])
    encoded, decoded = {}, {}
    for image, stream in request["encode"]:
        result = bitstream.encode_fully(from_uint8(torch.from_numpy(read_image(image)).permute(2, 0, 1)[None]))
        Path(stream).write_bytes(result.data)
        encoded[stream] = digest(result)
    for stream in request["decode"]:
        try:
            decoded[stream] = digest(bitstream.decode(Path(stream).read_bytes()))
        except UserError as error:
            decoded[stream] = f"error: {error}"
    return {"encode": encoded, "decode": decoded, "fingerprint": bitstream.fingerprint.hex()}


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
