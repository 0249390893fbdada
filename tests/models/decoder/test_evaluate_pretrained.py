"""`evaluate` on a checkpoint over a pretrained base, with a decoder that works in tiles: what `decompress` shows."""

from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from aeic_lightning.cli import main
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.decoder import TilingConfig
from aeic_lightning.models.random_model import save
from aeic_lightning.study.results import read_result


def test_figures_are_those_of_the_decompressed_picture(tmp_path, codec_config, pretrained):
    tiles = TilingConfig(unet_tile=16, unet_overlap=8, vae_tile=16, vae_overlap=8)  # of 128 pixels
    torch.manual_seed(0)
    model = AEIC(codec_config, replace(pretrained, tiling=tiles))
    model.decoder.load_base()
    model.codec.prior.update_quantiles()
    save(model, tmp_path / "model.ckpt")
    (tmp_path / "photos").mkdir()
    photo = data.chelsea()[:180, :200]
    Image.fromarray(photo).save(tmp_path / "photos" / "cat.png")
    words = [str(tmp_path / "photos"), "--checkpoint", str(tmp_path / "model.ckpt"), "-o"]
    assert main(["compress", *words, str(tmp_path / "streams")]) == 0
    assert main(["decompress", str(tmp_path / "streams"), *words[1:], str(tmp_path / "decoded")]) == 0
    assert main(["evaluate", "--images", *words, str(tmp_path / "r.json")]) == 0
    (row,) = read_result(tmp_path / "r.json").images
    assert row["bytes"] == (tmp_path / "streams" / "cat.aeic").stat().st_size
    decoded = np.asarray(Image.open(tmp_path / "decoded" / "cat.png"))
    assert row["psnr"] == peak_signal_noise_ratio(photo, decoded)
