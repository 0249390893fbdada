"""A small system and real images to try the callbacks on."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from skimage import data
from torch import nn
from torchvision.transforms.functional import to_tensor

# Height and width of the validation images; the first is just large enough for MS-SSIM.
SIZES = {"wide": (176, 208), "tall": (150, 100), "small": (96, 96)}


class TinySystem(LightningModule):
    """A convolutional autoencoder with the validation contract and the tags of the real systems."""

    def __init__(self, max_generator_steps=6):
        super().__init__()
        self.encoder = nn.Conv2d(3, 8, 4, 4)
        self.decoder = nn.ConvTranspose2d(8, 3, 4, 4)
        self.generator_step = 0
        self.max_generator_steps = max_generator_steps

    def hparam_columns(self):
        return {"role": "student", "depth": 1, "lambda": 2.0, "seed": 0}

    def training_step(self, batch, batch_idx):
        y = self.encoder(batch["image"])
        y = y + torch.rand_like(y) - 0.5  # draws from the global stream, as training does
        loss = F.mse_loss(self.decoder(y), batch["image"])
        self.log("train/loss", loss)
        self.log("train/bpp_estimate", 0.03)
        for side, tap, scale in (("encoder", "y", 1.0), ("encoder", "z", 0.1), ("decoder", "l_0", 10.0)):
            self.log(f"train/distill/{side}/{tap}", loss * scale)
        self.generator_step += 1
        return loss

    def validation_step(self, batch, batch_idx):
        x = batch["image"]
        h, w = x.shape[2:]
        padded = F.pad(x, (0, -w % 4, 0, -h % 4), mode="replicate")
        x_hat = self.decoder(self.encoder(padded))[..., :h, :w]
        bits = torch.full((len(x),), 0.02 * h * w, device=x.device)
        return {"name": batch["name"], "x": x, "x_hat": x_hat, "bits_estimate": bits, "bytes": [h * w // 350] * len(x)}

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def photo(height, width, top=0, left=0):
    """A crop of a real photograph, (3, H, W) in [-1, 1]."""
    crop = data.astronaut()[top : top + height, left : left + width]
    return to_tensor(crop) * 2 - 1


def records(sizes=SIZES):
    return [{"image": photo(h, w, top=20 * i, left=90), "name": name} for i, (name, (h, w)) in enumerate(sizes.items())]
