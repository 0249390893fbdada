"""Parameters and MACs: against the paper's figures, and against a count of one's own."""

from pathlib import Path

import pytest
import torch
from torch import nn

from aeic_lightning import cli
from aeic_lightning.checkpoints.released import RELEASED
from aeic_lightning.errors import UserError
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.study.complexity import SIZE, codec_costs, experiment_configs, paper_encode

PAPER = Path(__file__).parents[2] / "experiments" / "paper"


@pytest.mark.parametrize(
    ("stage", "parameters", "macs", "g_a_parameters", "g_a_macs"),
    [("me_stage1", 55.91e6, 204.26e3, 3.09e6, 46.92e3), ("se_stage2", 16.10e6, 46.02e3, 0.94e6, 9.73e3)],
)
def test_experiments_are_the_papers_models(stage, parameters, macs, g_a_parameters, g_a_macs, capsys):
    """Encode within 0.5 % of the paper's table; the command prints both and the difference."""
    file = PAPER / f"{stage}.yaml"
    assert cli.main(["complexity", "--config", str(file)]) == 0
    rows = {row[0]: row[1:] for row in map(str.split, reversed(capsys.readouterr().out.splitlines()))}
    costs = {name: [float(word.replace(",", "")) for word in rows[name]] for name in ("encode", "g_a")}
    assert costs["encode"] == [pytest.approx(parameters, rel=1e-3), pytest.approx(macs, rel=5e-3)]
    assert costs["g_a"] == [pytest.approx(g_a_parameters, abs=0.005e6), pytest.approx(g_a_macs, abs=5)]
    assert rows["the"][1:3] == [f"{parameters:,.0f}", f"{macs:,.1f}"]
    assert rows["difference"][1] == f"{costs['encode'][1] / macs - 1:+.2%}"


def test_macs_are_those_of_every_convolution(codec_config, decoder_config):
    """Independent: each convolution's outputs times its kernel, by hooks on a real pass of the sender's modules."""
    model = AEIC(codec_config, decoder_config).eval()
    codec = model.codec
    count = 0

    def add(module: nn.Conv2d, args, out) -> None:
        nonlocal count
        outputs = out if isinstance(out, tuple) else (out,)  # a convolution whose halves come apart
        count += sum(part.numel() for part in outputs) * module.weight[0].numel()

    for part in (codec.g_a, codec.h_a, codec.h_s, codec.context):
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(add)
    with torch.no_grad():
        codec(torch.zeros(1, 3, SIZE // 4, SIZE // 4))
    expected = count / (SIZE // 4) ** 2
    assert codec_costs(model)["encode"].macs_per_pixel == pytest.approx(expected, rel=1e-6)


def test_only_the_papers_sizes_are_compared():
    for name, (codec, _) in RELEASED.items():
        assert paper_encode(codec)[0] == name
    assert paper_encode(CodecConfig(skip_threshold=None))[0] == "AEIC-SE"
    assert paper_encode(CodecConfig(depths=[2, 2, 2, 2, 2])) is None


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "no model section"),
        ({"model": {"init_args": {"codec": {}}}}, "no decoder section"),
        ({"model": {"init_args": {"codec": {"width": 3}, "decoder": {}}}}, "'width'"),
    ],
)
def test_files_without_sizes_are_refused(config, expected):
    with pytest.raises(UserError, match=expected):
        experiment_configs(config, "x.yaml")
