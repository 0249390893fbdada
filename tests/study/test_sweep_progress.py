"""What a sweep and its runs leave out of the log, and the estimate of the time that is left."""

import logging
from pathlib import Path

import pytest

from aeic_lightning.config.lightning_cli import _is_news
from aeic_lightning.study.runner import _eta
from aeic_lightning.study.sweep_file import Run, steps_of


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("💡 Tip: For seamless cloud logging and experiment tracking, try installing ...", False),
        ("GPU available: False, used: False", False),
        ("TPU available: False, using: 0 TPU cores", False),
        ("Seed set to 0", False),
        ("`Trainer.fit` stopped: `max_steps=1` reached.", False),
        ("Restoring states from the checkpoint path at last.ckpt", True),
        ("The GPU available here is busy", True),
    ],
)
def test_what_every_run_says_is_left_out(said, shown):
    assert _is_news(logging.makeLogRecord({"msg": said})) is shown


def test_the_rest_of_a_sweep_is_estimated_by_steps():
    settings = {"short": {"trainer": {"max_steps": 100}}, "long": {"trainer": {"max_steps": 300}}, "endless": {}}
    short, long = (Run(name, Path("a.yaml"), Path(name), []) for name in ("short", "long"))
    assert _eta(settings, [long, short], 200, 60.0) == "  (2 runs left, ETA 0:02:00)"
    assert _eta(settings, [], 600, 180.0) == ""
    assert steps_of(settings["endless"]) == 1
    assert steps_of(settings["long"], begins=100) == 200, "a branch has the trunk's updates already"
