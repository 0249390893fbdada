"""Streams of the compress-and-classify model."""

import json
from pathlib import Path

import pytest
import torch

from aeic_lightning.bitstream.exact import Convolution, HyperSynthesis, exact_mode, from_tokens, to_tokens
from aeic_lightning.bitstream.stream import Bitstream
from aeic_lightning.classification import ClassificationModel
from aeic_lightning.cli import main
from aeic_lightning.cli.commands import verify
from aeic_lightning.errors import UserError


@pytest.fixture
def model(sizes) -> ClassificationModel:
    model = ClassificationModel(sizes).eval()
    with torch.no_grad():
        # Means and scales that differ from place to place, densities that are not symmetric.
        for p in [*model.codec.h_s.parameters(), *model.codec.prior.parameters()]:
            p.add_(0.1 * torch.randn_like(p))
    model.codec.prior.update_quantiles()
    return model


def picture(height: int, width: int) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)


@pytest.mark.parametrize(
    "conv",
    [
        torch.nn.Conv2d(6, 10, 3, padding=1),
        torch.nn.Conv2d(6, 10, 5, padding=2),
        torch.nn.ConvTranspose2d(6, 10, 5, stride=2, padding=2, output_padding=1),
    ],
)
def test_exact_convolutions_are_close_to_the_float_ones(conv):
    x = torch.randn(1, 6, 5, 7)
    with exact_mode():
        found = from_tokens(Convolution(conv)(to_tokens(x)))
    expected = conv(x)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 0.03 * expected.std()  # weights of 8 bits


def test_exact_hyper_synthesis_does_not_depend_on_threads_or_layout(model):
    h_s = HyperSynthesis(model.codec.h_s)
    z_hat = torch.randn(1, 6, 9, 6).round()
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2):
            torch.set_num_threads(n)
            with exact_mode():
                results += [h_s(z_hat), h_s(z_hat.contiguous(memory_format=torch.channels_last))]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize(("height", "width"), [(64, 64), (16, 16), (50, 90), (48, 112)])
def test_a_stream_decodes_to_the_senders_latents(model, height, width):
    stream = Bitstream(model)
    encoded = stream.encode_fully(picture(height, width))
    decoded = Bitstream(model).decode(encoded.data)
    assert torch.equal(decoded.y_hat, encoded.y_hat)
    assert torch.equal(decoded.z_hat, encoded.z_hat)
    assert (decoded.height, decoded.width) == (height, width)
    assert len(encoded.data) * 8 <= encoded.bits + 8 * 20


@pytest.mark.parametrize("channels", [2, 6])
def test_channels_that_four_does_not_divide(sizes, channels):
    """The steps of a context model are told by quarters of the channels."""
    sizes.encoder_widths[-1] = channels
    model = ClassificationModel(sizes).eval()
    encoded = Bitstream(model).encode_fully(picture(64, 48))
    assert encoded.coded == channels * 4 * 3  # nothing is skipped
    assert torch.equal(Bitstream(model).decode(encoded.data).y_hat, encoded.y_hat)


def test_the_file_takes_what_the_estimate_says(model):
    x = picture(128, 128)
    with torch.no_grad():
        # Wide enough that no value sits on the floor of the likelihood.
        model.codec.h_s[-1].bias[:12] = 3.0
        output = model(x)
    data = Bitstream(model).encode(x)
    # Exact arithmetic of 8-bit weights, 64 scale levels, a header of 13 bytes: 4 % for all of it.
    assert abs(8 * (len(data) - 13) / output.bits_estimate.item() - 1) < 0.04


def test_another_model_and_a_damaged_file_are_refused(model, sizes):
    data = Bitstream(model).encode(picture(64, 64))
    with pytest.raises(UserError, match="another checkpoint"):
        Bitstream(ClassificationModel(sizes).eval()).decode(data)
    with pytest.raises(UserError, match="damaged"):
        Bitstream(model).decode(data[:-1])


GOLDEN = Path(__file__).parents[1] / "golden" / "data"


def test_evaluate_measures_the_files(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "photo.png").write_bytes((GOLDEN / "original.png").read_bytes())
    words = ["--checkpoint", str(GOLDEN / "classification.ckpt"), "--images", str(tmp_path / "images")]
    assert main(["evaluate", *words, "--backbones", "lite0", "-o", str(tmp_path / "result.json")]) == 0
    (result,) = json.loads((tmp_path / "result.json").read_text())["results"]
    (row,) = result["images"]
    size = len((GOLDEN / "classification.aeic").read_bytes())
    assert abs(row["bytes"] - size) <= 2  # g_a is floating point
    assert row["bpp_estimate"] * row["height"] * row["width"] / 8 < row["bytes"] + 1  # the header is beside it


def test_verify_reads_the_files_but_has_no_fast_sender(tmp_path, capsys):
    checkpoint, stream = str(GOLDEN / "classification.ckpt"), str(tmp_path / "photo.aeic")
    request = {"checkpoint": checkpoint, "threads": 1, "onednn": True, "channels_last": True, "kernel": None}
    request |= {"fast": False, "encode": [[str(GOLDEN / "original.png"), stream]], "decode": [stream]}
    answer = verify.answer(request)
    assert answer["decode"] == answer["encode"]
    words = ["verify", str(GOLDEN / "original.png"), "--checkpoint", checkpoint, "--settings", "fast sender"]
    assert main(words) == 2
    assert "compress-and-classify model has no fast sender" in capsys.readouterr().err


def test_a_batch_has_the_files_and_latents_of_single_images(model):
    bitstream = Bitstream(model)
    x = torch.cat([picture(64, 96), picture(64, 96).flip(3) * 0.05])
    files = [encoded.data for encoded in bitstream.encode_batch(x)]
    assert files == [bitstream.encode(image) for image in x.split(1)]
    for one, other in zip(bitstream.decode_batch(files), map(bitstream.decode, files), strict=True):
        assert torch.equal(one.y_hat, other.y_hat)
