"""Networks in ncnn's form against the same layers of PyTorch, written here from the form's description."""

import struct

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from aeic_lightning.errors import UserError
from aeic_lightning.models.ncnn import NcnnNetwork

PARAM = """7767517
15 19
Input        in     0 1 data
MemoryData   mean   0 1 mean 0=1 1=1 2=3
BinaryOp     sub    2 1 data mean centred 0=1
BinaryOp     mul    1 1 centred scaled 0=2 1=1 2=2.500000e+00
Convolution  first  1 1 scaled a 0=12 1=3 4=1 5=1 6=324 9=2 -23310=1,2.000000e-01
Split        copies 1 4 a a0 a1 a2 a3
Swish        swish  1 1 a0 b
Sigmoid      gate   1 1 a1 c
Eltwise      sum    2 1 b a2 d 0=1 -23301=2,2.000000e-01,1.000000e+00
Concat       join   3 1 c d a3 e
Convolution  second 1 1 e f 0=12 1=1 5=1 6=432
PReLU        slope  1 1 f p 0=12
Interp       twice  1 1 p g 0=1 1=2.000000e+00 2=2.000000e+00
PixelShuffle up     1 1 g output 0=2
"""

SLOPES = np.linspace(-0.5, 1.5, 12, dtype="<f4")


def stored(folder, first, second, mean, *, tag=0x01306B47):
    """The two files; the first convolution's weights in 16 bits, the second's in 32."""
    half = first.weight.detach().numpy().astype("<f2").tobytes()
    single = second.weight.detach().numpy().astype("<f4").tobytes()
    biases = [layer.bias.detach().numpy().astype("<f4").tobytes() for layer in (first, second)]
    words = mean.astype("<f4").tobytes() + struct.pack("<I", tag) + half + b"\0" * (-len(half) % 4) + biases[0]
    (folder / "net.bin").write_bytes(words + struct.pack("<I", 0) + single + biases[1] + SLOPES.tobytes())
    (folder / "net.param").write_text(PARAM)
    return folder / "net.param"


@pytest.fixture
def parts():
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(36, 12, 1)
    first.weight.data = first.weight.data.half().float()
    return first, second, np.array([0.4, 0.5, 0.6])


def test_it_is_the_network_of_the_same_layers(parts, tmp_path):
    first, second, mean = parts
    x = torch.rand(1, 3, 5, 7)
    a = nn.LeakyReLU(0.2)(first((x - torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1)) * 2.5))
    joined = torch.cat([torch.sigmoid(a), 0.2 * nn.SiLU()(a) + a, a], dim=1)
    expected = nn.PixelShuffle(2)(nn.Upsample(scale_factor=2)(F.prelu(second(joined), torch.tensor(SLOPES))))
    found = NcnnNetwork(stored(tmp_path, *parts))(x)
    assert found.shape == (1, 3, 20, 28)
    assert torch.allclose(found, expected, atol=1e-6)


def test_bad_files(parts, tmp_path):
    path = stored(tmp_path, *parts, tag=0x000D4B38)
    with pytest.raises(UserError, match=r"net\.bin has weights in a form that is unknown here \(0xd4b38\)"):
        NcnnNetwork(path)
    stored(tmp_path, *parts)
    weights = (tmp_path / "net.bin").read_bytes()
    (tmp_path / "net.bin").write_bytes(weights[:-4])
    with pytest.raises(UserError, match="ends before its network does"):
        NcnnNetwork(path)
    (tmp_path / "net.bin").write_bytes(weights + b"more")
    with pytest.raises(UserError, match="4 bytes more than its layers take"):
        NcnnNetwork(path)
    path.write_text(PARAM.replace("Swish ", "Mish  "))
    with pytest.raises(UserError, match=r"net\.param: swish is a layer unknown here \(Mish\)"):
        NcnnNetwork(path)
    path.write_text("no network")
    with pytest.raises(UserError, match="is no network of ncnn"):
        NcnnNetwork(path)
