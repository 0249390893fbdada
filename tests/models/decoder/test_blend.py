"""Pictures that the VAE decoder paints in patches, and the convolution that makes them overlap."""

import pytest
import torch

from aeic_lightning.errors import UserError
from aeic_lightning.models.decoder import VAEConfig
from aeic_lightning.models.decoder.one_step import vae_decoder

SIZES = {"widths": [8, 8, 8], "layers": 0, "groups": 0, "attention": False, "patch": 2}


def reach(blend: int) -> set[tuple[int, int]]:
    """Size of the region of the picture that one value before the last layers reaches, for all four patch positions."""
    torch.manual_seed(0)
    last = vae_decoder(8, VAEConfig(**SIZES, blend=blend)).conv_out
    with torch.no_grad():
        silence, impulse = torch.zeros(2, 1, 8, 9, 9)
        impulse[0, 0, 4, 4] = 1
        changed = (last(impulse) - last(silence)).abs().sum(dim=(0, 1)) > 0
    rows, columns = changed.nonzero(as_tuple=True)
    return {(int(rows.max() - rows.min() + 1), int(columns.max() - columns.min() + 1))}


def test_blended_patches_overlap():
    """A 3x3 kernel at stride 2 reaches three patches of two pixels; a 3x3 kernel behind it one pixel more each way."""
    assert reach(0) == {(6, 6)}
    assert reach(4) == {(8, 8)}


@pytest.mark.parametrize("blend", [0, 4])
def test_size_of_the_picture(blend):
    decoder = vae_decoder(8, VAEConfig(**SIZES, blend=blend))
    assert decoder(torch.randn(2, 8, 3, 5)).shape == (2, 3, 24, 40)


def test_blend_needs_a_patch():
    with pytest.raises(UserError, match="blend is 4"):
        VAEConfig(blend=4).check()
    with pytest.raises(UserError, match="blend is -1"):
        VAEConfig(**SIZES, blend=-1).check()
