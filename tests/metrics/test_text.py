"""Text in pictures, against text that the test has drawn."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

from aeic_lightning.metrics.quality import ImageQuality
from aeic_lightning.metrics.text import TextLegibility

LINES = "Distillation of codecs", "at 0.05 bits per pixel"


@pytest.fixture(scope="module")
def legibility() -> TextLegibility:
    return TextLegibility()


def drawn(*lines: str) -> Image.Image:
    image = Image.new("RGB", (352, 176), "white")
    for number, line in enumerate(lines):
        ImageDraw.Draw(image).text((20, 20 + 80 * number), line, "black", ImageFont.load_default(28))
    return image


def tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


def test_reads_the_lines_that_were_drawn_at_their_places(legibility: TextLegibility) -> None:
    image = np.array(drawn(*LINES))[..., ::-1].astype(np.float32) / 255
    boxes = legibility.boxes(image)
    assert tuple(legibility.read(image[box])[0] for box in boxes) == LINES
    assert [rows.start // 80 for rows, _ in boxes] == [0, 1]


def test_share_falls_with_blur_and_counts_characters(legibility: TextLegibility) -> None:
    x = drawn(*LINES)
    shares = [legibility(tensor(x.filter(ImageFilter.GaussianBlur(radius))), tensor(x)) for radius in (0, 4, 8)]
    assert shares[0] == 1
    assert 0 < (shares[1] or 0) < 1
    assert shares[2] == 0
    one_line = legibility(tensor(drawn(LINES[0])), tensor(x))
    assert one_line == pytest.approx(len(LINES[0]) / sum(map(len, LINES)))


def test_an_image_without_text_has_no_value(legibility: TextLegibility) -> None:
    entry = {"class_path": "aeic_lightning.metrics.text.TextLegibility", "higher": True}
    quality = ImageQuality(lpips=(), dists=(), metrics=[entry])
    with_text, without = (torch.from_numpy(np.array(drawn(*lines))).permute(2, 0, 1) for lines in (LINES, ()))
    assert quality.row("page", with_text, with_text)["text_legibility"] == 1
    assert "text_legibility" not in quality.row("wall", without, without)
