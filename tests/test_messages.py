"""Messages that name what is missing, and what to set instead."""

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from aeic_lightning.codec import Codec
from aeic_lightning.config.lightning_cli import in_our_words
from aeic_lightning.errors import UserError
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.study.sweep_file import read_sweep
from tests.systems.test_compression import make


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ("{out: o}", "report lacks against; it needs out, against"),
        ("{out: o, against: [], claim: []}", "report has no 'claim'; did you mean claims"),
        ("{out: o, against: [{within: [a]}]}", "an entry of against lacks reference; it needs reference"),
        ("[out]", r"report is a mapping of against, arms, claims, .*; got \['out'\]"),
    ],
)
def test_what_is_missing_is_named(tmp_path, report, message):
    (tmp_path / "sweep.yaml").write_text(f"root: {tmp_path}\nruns: [{{name: a, config: a.yaml}}]\nreport: {report}\n")
    with pytest.raises(UserError, match=message):
        read_sweep(tmp_path / "sweep.yaml", [])


@pytest.mark.parametrize(
    ("setting", "instead"),
    [
        ({"gradient_clip_val": 1.0}, "optimization.gradient_clip, which clips each player by itself"),
        ({"accumulate_grad_batches": 2}, "optimization.accumulate, which counts for both players"),
    ],
)
def test_settings_of_the_trainer_that_do_nothing_here(codec_config, decoder_config, loader, trainer, setting, instead):
    """Lightning's own refusal, in words that say what to set."""
    with pytest.raises(MisconfigurationException) as refused:
        trainer(1, **setting).fit(make(codec_config, decoder_config), loader(1))
    (name,) = setting
    assert in_our_words(str(refused.value)) == f"trainer.{name} does nothing in this system; set {instead}"
    assert in_our_words("something else") == "something else"


def test_saved_weights_say_that_16_bits_are_another_codec(codec_config, decoder_config, tmp_path, capsys):
    model = AEIC(codec_config, decoder_config).eval()
    model.prior.update_quantiles()
    codec = Codec(model)
    codec.save_pretrained(tmp_path / "half")
    half = Codec.from_pretrained(tmp_path / "half")
    assert half.fingerprint != codec.fingerprint
    said = capsys.readouterr().err
    assert f"another codec ({half.fingerprint[:16]}) than this one ({codec.fingerprint[:16]})" in said
    codec.save_pretrained(tmp_path / "whole", dtype="float32")
    assert Codec.from_pretrained(tmp_path / "whole").fingerprint == codec.fingerprint
    assert capsys.readouterr().err == ""
    assert "32-bit values" in (tmp_path / "whole" / "README.md").read_text()
    for name, tensor in Codec.from_pretrained(tmp_path / "half").model.state_dict().items():
        if "quantiles" not in name:
            assert torch.equal(tensor, model.state_dict()[name].half().float())
    with pytest.raises(UserError, match="dtype is float16 or float32, not 'int8'"):
        codec.save_pretrained(tmp_path / "none", dtype="int8")
