"""The sender's own part, g_a and h_a: as quick as it likes, since the receiver never repeats it."""

import copy

import torch
from torch import Tensor

from aeic_lightning import UserError
from aeic_lightning.codec import LatentCodec
from aeic_lightning.codec.layers import StarBlock

BAND_PIXELS = 1 << 22  # images above are analysed in bands of about this many pixels


class Sender:
    """x (1, 3, H, W) in [-1, 1] -> y, z of its padded form, both float32.

    Channels last, and in bands of rows for large images, so that memory does not grow with the height. Each band takes
    along as many rows around it as g_a looks at, so the bands give what the whole image would, but for the order of
    additions. With `fast`, all but the last stage of g_a runs in bfloat16: y moves by less than the rounding to come.
    """

    def __init__(self, codec: LatentCodec, fast: bool = False) -> None:
        self.codec = codec
        self.dtype = torch.bfloat16 if fast else torch.float32
        self.g_a = copy.deepcopy(codec.g_a).to(memory_format=torch.channels_last).eval()
        downs = [i for i, module in enumerate(self.g_a) if not isinstance(module, StarBlock)]
        self.early = self.g_a[: downs[-1]].to(self.dtype)
        self.late = self.g_a[downs[-1] :]
        # Rows that reach an output: a Down sees 1 more at its input's resolution, a StarBlock 5 at its own.
        reach, scale = 0, 1
        for module in self.g_a:
            if isinstance(module, StarBlock):
                reach += 5 * scale
            else:
                reach += scale
                scale *= 2
        self.halo = -(-reach // codec.stride) * codec.stride

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Raises UserError if the model gives values that are not finite."""
        x = self.codec.pad(x)
        height, width = x.shape[2:]
        stride = self.codec.stride
        rows = max(BAND_PIXELS // width, self.halo) // stride * stride
        bands = []
        for top in range(0, height, rows):
            first, last = max(top - self.halo, 0), min(top + rows + self.halo, height)
            y = self._analyse(x[:, :, first:last])
            skip = (top - first) // stride
            bands.append(y[:, :, skip : skip + min(rows, height - top) // stride])
        y = torch.cat(bands, dim=2)
        if not y.isfinite().all():
            raise UserError("g_a gives values that are not finite: the model has diverged; use an earlier checkpoint")
        return y, self.codec.hyper_encode(y)

    def _analyse(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
        return self.late(self.early(x).float()).contiguous()
