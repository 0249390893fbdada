"""The metrics of one image, on the 8-bit images that a file would hold: one place for callbacks and commands."""

import zlib
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from aeic_lightning import __version__
from aeic_lightning.errors import UserError
from aeic_lightning.images import from_uint8
from aeic_lightning.metrics.features import DISTS, LPIPS, ClassAgreement, Distance, Pair
from aeic_lightning.metrics.patches import network_digest
from aeic_lightning.metrics.pixels import MS_SSIM_SMALLEST_SIDE, bits_per_pixel, ms_ssim, ms_ssim_fits, psnr
from aeic_lightning.metrics.table import read_metrics
from aeic_lightning.torch_settings import own_random_state

DESCRIBED = ("bytes", "bits_estimate")
"""Columns of a row that are no metrics to take a mean of."""


class ImageQuality:
    """PSNR, MS-SSIM, LPIPS and DISTS of image after image, with the rate where it is known.

    MS-SSIM is left out of images below 176 pixels a side.

    Args:
        ms_ssim: whether to compute MS-SSIM.
        lpips: backbones of LPIPS; each gives a metric of its own.
        dists: the same for DISTS (which has no "alex").
        same_class: whether the class of the held-out classifier is compared (`ClassAgreement`).
        metrics: metrics of the user's own, as {class_path, higher, init_args, ...} (`metrics.table.read_metrics`).

    Raises UserError for a backbone whose weights, and for a metric whose package, are missing.
    """

    def __init__(
        self,
        ms_ssim: bool = True,
        lpips: Sequence[Any] = ("lite0",),
        dists: Sequence[Any] = ("lite0",),
        same_class: bool = False,
        metrics: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.ms_ssim = ms_ssim
        self.own = read_metrics(metrics)
        # Building a network may draw initial weights, even when a file then overwrites them.
        with own_random_state():
            built: list[tuple[Any, str]] = [(LPIPS(b), b) for b in lpips] + [(DISTS(b), b) for b in dists]
            built += [(ClassAgreement(), "lite2")] if same_class else []
            self.own_built = {own.metric.name: own.build() for own in self.own}
        self.networks = [network for network, _ in built]
        self.backbones = {network.name: backbone for network, backbone in built}
        self.last_original: tuple[Tensor, dict[Hashable, list[Tensor]]] | None = None

    def to(self, device: torch.device | str) -> "ImageQuality":
        """Where the networks compute."""
        for network in (*self.networks, *self.own_built.values()):
            if isinstance(network, nn.Module):
                network.to(device)
        return self

    @torch.no_grad()
    def row(
        self, name: str, x: Tensor, x_hat: Tensor, bits_estimate: float | None = None, bytes: int | None = None
    ) -> dict[str, Any]:
        """Name, size, checksum and metrics of one image.

        Args:
            name: of the image.
            x, x_hat: original and reconstruction, uint8 (3, H, W).
            bits_estimate: the likelihood of the whole image.
            bytes: of its file.
        """
        height, width = x.shape[-2:]
        x8, x8_hat = x[None], x_hat[None]
        row: dict[str, Any] = {
            "name": name,
            "height": height,
            "width": width,
            "crc32": zlib.crc32(x.cpu().numpy().tobytes()),
        }
        if bits_estimate is not None:
            row |= {"bits_estimate": bits_estimate, "bpp_estimate": bits_per_pixel(bits_estimate, height, width)}
        if bytes is not None:
            row |= {"bytes": bytes, "bpp": bits_per_pixel(8 * bytes, height, width)}
        row["psnr"] = psnr(x8_hat, x8).item()
        if self.ms_ssim and ms_ssim_fits(height, width):
            row["ms_ssim"] = ms_ssim(x8_hat, x8).item()
        original, reconstruction = from_uint8(x8), from_uint8(x8_hat)
        pair = Pair(reconstruction, original, self._maps_of(x))
        for network in self.networks:
            metric = network.name
            value = network.compare(pair) if isinstance(network, Distance) else network(reconstruction, original)
            row[metric] = value.item()
        for metric, function in self.own_built.items():
            if (given := function(reconstruction, original)) is None:
                continue
            value = torch.as_tensor(given)
            if value.numel() != 1:
                raise UserError(f"metric {metric} gives {tuple(value.shape)} for one image; it must give one number")
            row[metric] = float(value)
        return row

    def _maps_of(self, x: Tensor) -> dict[Hashable, list[Tensor]]:
        """Where the features of the original go: an image is often measured at several rates, one after another."""
        known = self.last_original
        if known is None or known[0].device != x.device or not torch.equal(known[0], x):
            known = self.last_original = x.clone(), {}
        return known[1]

    @cached_property
    def info(self) -> dict[str, dict[str, Any]]:
        """Backbone, version and options of every metric that `row` may give."""
        ours = f"aeic_lightning {__version__}"
        info = {
            "bpp": {"backbone": None, "version": ours, "options": {"bits": "8 x bytes of the file, header included"}},
            "bpp_estimate": {"backbone": None, "version": ours, "options": {"bits": "likelihood"}},
            "psnr": {"backbone": None, "version": ours, "options": {"peak": 255}},
        }
        if self.ms_ssim:
            info["ms_ssim"] = {
                "backbone": None,
                "version": f"torchmetrics {version('torchmetrics')}",
                "options": {"scales": 5, "window": 11, "peak": 255, "smallest_side": MS_SSIM_SMALLEST_SIDE},
            }
        for network in self.networks:
            # Channel weights of the standard metrics come from these packages.
            source = {"alex": "lpips", "vgg": "lpips" if isinstance(network, LPIPS) else "torchmetrics"}
            backbone = self.backbones[network.name]
            package = source.get(backbone)
            info[network.name] = {
                "backbone": backbone,
                "weights": network_digest(network.backbone),
                "version": f"{package} {version(package)}" if package else ours,
                "options": {"range": "[-1, 1]"},
            }
        known = {name: getattr(function, "info", {}) for name, function in self.own_built.items()}
        return info | {own.metric.name: own.info | known[own.metric.name] for own in self.own}
