"""Streams of the compress-and-classify model: the `.aeic` container and range coder of `aeic_lightning.bitstream`.

The hyperprior's h_s runs in the exact arithmetic of `aeic_lightning.bitstream.exact`, so a stream decodes to the same
latents on every machine. Its convolutions of 3x3 and 5x5 become matrix products of patches; a transposed one is the
convolution of its input with zeros between the values.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aeic_lightning.bitstream import container
from aeic_lightning.bitstream.exact import MEAN_LIMIT, MEAN_STEPS, Linear, from_tokens, to_tokens
from aeic_lightning.bitstream.rows import by_rows
from aeic_lightning.bitstream.stream import Bitstream, Decoded, Encoded, LatentCoder, fingerprint, reconstruct
from aeic_lightning.bitstream.tables import Tables, gaussian_tables, level_bounds, medians, prior_tables
from aeic_lightning.classification.codec import STRIDE
from aeic_lightning.classification.model import ClassificationModel
from aeic_lightning.errors import UserError
from aeic_lightning.images import to_uint8
from aeic_lightning.models.aeic import AEIC


class ExactConv(nn.Module):
    """A convolution of stride 1, or a transposed one of stride 2: (h, w, K) -> (h, w, O) or (2h, 2w, O)."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.kernel = conv.kernel_size[0]
        self.upsamples = isinstance(conv, nn.ConvTranspose2d)
        if self.upsamples:
            weight = conv.weight.detach().transpose(0, 1).flip(2, 3)
            conv = _with_weight(weight, conv.bias)
        self.conv = Linear(conv)

    def forward(self, x: Tensor) -> Tensor:
        if self.upsamples:
            wide = x.new_zeros(2 * x.shape[0], 2 * x.shape[1], x.shape[2])
            wide[::2, ::2] = x
            x = wide
        h, w, _ = x.shape
        patches = F.unfold(x.permute(2, 0, 1)[None], self.kernel, padding=self.kernel // 2)
        (out,) = by_rows(lambda rows: (self.conv(rows),), patches[0].t().reshape(h, w, -1))
        return out


class ExactLeakyReLU(nn.Module):
    """One multiplication: the same everywhere."""

    def __init__(self, module: nn.LeakyReLU) -> None:
        super().__init__()
        self.slope = module.negative_slope

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, x * self.slope)


class ExactHyperSynthesis(nn.Module):
    """h_s of the mean-scale hyperprior: z_hat (1, N, h, w) -> (1, 2M, 2h, 2w), scales first."""

    def __init__(self, h_s: nn.Sequential) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(ExactLeakyReLU(m) if isinstance(m, nn.LeakyReLU) else ExactConv(m) for m in h_s))

    def forward(self, z_hat: Tensor) -> Tensor:
        return from_tokens(self.layers(to_tokens(z_hat)))


def one_step(parameters: Tensor, code: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """What `QuadtreeContext.forward` is to AEIC: all of y in a single step, from h_s's scales and means alone."""
    scale, mean = parameters.chunk(2, dim=1)
    mean = (mean * MEAN_STEPS).round_().clamp_(-MEAN_LIMIT, MEAN_LIMIT).div_(MEAN_STEPS)
    return code(mean, scale, torch.ones_like(mean, dtype=torch.bool))


class ClassificationBitstream(LatentCoder):
    """Writes and reads the streams of a compress-and-classify model, on the CPU, one image at a time.

    Build a new one when the weights have changed. Raises UserError for a model whose weights are not finite.
    """

    def __init__(self, model: ClassificationModel) -> None:
        for name, tensor in model.state_dict().items():
            if not tensor.isfinite().all():
                raise UserError(f"{name} is not finite: the model has diverged; use an earlier checkpoint")
        self.model = model
        prior = model.codec.prior
        shared = Tables(
            stride=STRIDE // 2,  # see `decode`
            skip_threshold=model.codec.conditional.skip_threshold,
            medians=torch.from_numpy(medians(prior)).reshape(1, -1, 1, 1),
            bounds=level_bounds(),
            z_tables=prior_tables(prior),
            y_tables=gaussian_tables(),
        )
        hyper_synthesis = ExactHyperSynthesis(model.codec.h_s)
        super().__init__(hyper_synthesis, one_step, shared, fingerprint([hyper_synthesis, model], shared))

    @torch.inference_mode()
    def encode(self, x: Tensor) -> bytes:
        """The file of one image (1, 3, H, W) in [-1, 1], 1 to 8192 pixels a side."""
        return self.encode_fully(x).data

    @torch.inference_mode()
    def encode_fully(self, x: Tensor) -> Encoded:
        """The file of one image, and the latents and rates behind it."""
        codec = self.model.codec
        y = codec.g_a(self.model.prepare(x))
        return self.encode_latents(y, codec.h_a(y), *x.shape[2:])

    def decode(self, data: bytes) -> Decoded:
        """The latents of a file, the same on every machine. Raises UserError as `LatentCoder.decode` does."""
        stream = container.unpack(data, self.fingerprint)
        (h, w), _ = self.model.codec.latent_sizes(stream.height, stream.width)

        def hyper_synthesis(z_hat: Tensor) -> Tensor:
            return self.hyper_synthesis(z_hat)[..., :h, :w]

        # The coder's z is four times as coarse as y, ours twice. It is told of a y twice as fine, which has our z, and
        # gets means and scales that are cropped to our y already.
        return LatentCoder(hyper_synthesis, self.context, self.shared, self.fingerprint).decode(data)


def _with_weight(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2])
    conv.weight.data, conv.bias.data = weight.contiguous(), bias.detach()
    return conv


class Streams:
    """Files of a model of either kind: what `compress`, `decompress` and `classify` need of it.

    Args:
        model: a compress-and-classify model or an AEIC.
        fast: bfloat16 for an AEIC's encoder and decoder; the latents of a file stay what they are.
    """

    def __init__(self, model: ClassificationModel | AEIC, fast: bool = False) -> None:
        self.model = model
        self.fast = fast
        self.bitstream = (
            ClassificationBitstream(model) if isinstance(model, ClassificationModel) else Bitstream(model, fast)
        )

    @property
    def generative(self) -> bool:
        """Whether the pictures are made by a decoder that invents details."""
        return isinstance(self.model, AEIC)

    def write(self, x: Tensor) -> bytes:
        """The file of one image (1, 3, H, W) in [-1, 1]."""
        return self.bitstream.encode(x)

    def read(self, data: bytes) -> Decoded:
        """The latents of a file. Raises UserError as `Bitstream.decode` does."""
        return self.bitstream.decode(data)

    @torch.inference_mode()
    def picture(self, decoded: Decoded) -> Tensor:
        """The picture of decoded latents, uint8 (3, H, W). Floating point: machines may differ in single levels."""
        if not isinstance(self.model, ClassificationModel):
            return reconstruct(self.model, decoded, self.fast)
        x_hat = self.model.reconstruct(decoded.y_hat)[0, :, : decoded.height, : decoded.width]
        return to_uint8(x_hat)
