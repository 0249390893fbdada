"""`optimization.freeze`: parts of the model that keep their weights."""

import pytest
import torch

from aeic_lightning.errors import UserError
from tests.systems.test_compression import make, weights


def test_frozen_modules_stay_and_the_others_learn_through_them(codec_config, decoder_config, loader, trainer):
    system = make(codec_config, decoder_config, freeze=["decoder", "codec.g_s"], weight_decay=0.1)
    before = weights(system.model)
    trainer(2).fit(system, loader(2))
    changed = {name for name, value in system.model.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith(("decoder.", "codec.g_s.")) for name in changed)
    assert any(name.startswith("codec.g_a.") for name in changed), "the loss reaches g_a through what is frozen"


def test_a_module_that_is_not_there_is_named(codec_config, decoder_config, loader, trainer):
    with pytest.raises(UserError, match=r"no module 'codec\.g_z'.*codec\.g_"):
        trainer(1).fit(make(codec_config, decoder_config, freeze=["codec.g_z"]), loader(1))
    with pytest.raises(UserError, match="nothing to train"):
        trainer(1).fit(make(codec_config, decoder_config, freeze=["codec", "decoder"]), loader(1))
