import io
import re
import sys

import pytest
from lightning.pytorch.callbacks import ProgressBar
from tiny_system import TinySystem

from aeic_lightning.errors import UserError
from callbacks.progress import PlainProgress, clock, max_steps
from callbacks.quality import QualityMetrics


def test_lines_of_a_fit(system, trainer_of, train_loader, val_loader, capsys):
    trainer = trainer_of(PlainProgress(every_n_steps=3), QualityMetrics(lpips=[], dists=[]))
    assert len([c for c in trainer.callbacks if isinstance(c, ProgressBar)]) == 1  # Lightning's own stays away
    trainer.fit(system, train_loader, val_loader)
    out, err = capsys.readouterr()
    assert "step" not in out
    lines = [line for line in err.splitlines() if line.startswith("step")]
    steps = [line for line in lines if "steps/s" in line]
    pattern = r"step (\d)/6  loss [\d.]+  bpp_estimate 0\.03  [\d.e+]+ steps/s  ETA \d+:\d\d:\d\d"
    assert [re.fullmatch(pattern, line)[1] for line in steps] == ["3", "6"]
    assert steps[-1].endswith("ETA 0:00:00")
    assert [line.split(":")[0] for line in lines if "val/psnr" in line] == ["step 2", "step 4", "step 6"]
    assert err.count("validation 3/3") == 3
    assert "\r" not in err


def test_lines_of_a_test(system, trainer_of, val_loader, capsys):
    trainer_of(PlainProgress(every_n_steps=1), QualityMetrics(lpips=[], dists=[])).test(
        system, val_loader, verbose=False
    )
    err = capsys.readouterr().err
    assert [line for line in err.splitlines() if line.startswith("test ")] == ["test 1/3", "test 2/3", "test 3/3"]
    assert "test/psnr" in err


def test_a_system_without_counters_and_tags(trainer_of, train_loader, val_loader, capsys):
    class Plain(TinySystem):
        def __init__(self):
            super().__init__()
            del self.generator_step, self.max_generator_steps

        def training_step(self, batch, batch_idx):
            return self.decoder(self.encoder(batch["image"])).square().mean()

    trainer_of(PlainProgress(every_n_steps=2), max_steps=4, max_epochs=-1).fit(Plain(), train_loader, val_loader)
    lines = [line.split("  ")[:1] for line in capsys.readouterr().err.splitlines() if "steps/s" in line]
    assert lines == [["step 2/4"], ["step 4/4"]]


def test_the_last_step_is_the_generators(trainer_of):
    trainer = trainer_of(max_steps=40)
    assert max_steps(trainer, TinySystem(max_generator_steps=20)) == 20
    assert max_steps(trainer, TinySystem(max_generator_steps=None)) == 40
    assert max_steps(trainer_of(max_steps=-1), TinySystem(max_generator_steps=None)) is None


def test_other_ranks_are_silent(capsys):
    progress = PlainProgress()
    progress.disable()
    progress.print("a line")
    progress.enable()
    progress.print("another")
    assert capsys.readouterr().err == "another\n"


def test_clock():
    assert clock(0.4) == "0:00:00"
    assert clock(59.6) == "0:01:00"
    assert clock(36 * 3600 + 62) == "36:01:02"


def test_options_out_of_range():
    with pytest.raises(UserError, match="every_n_steps"):
        PlainProgress(every_n_steps=0)


def test_a_bar_on_a_terminal(system, trainer_of, train_loader, val_loader, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    trainer_of(PlainProgress(every_n_steps=3), QualityMetrics(lpips=[], dists=[])).fit(system, train_loader, val_loader)
    said = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", terminal.getvalue())
    assert re.search(r"6/6 +loss [\d.]+  bpp_estimate 0\.03  [\d.e+]+ steps/s  ETA 0:00:00", said)
    assert said.count("val/psnr") == 3, "lines of validations stand above the bar"
    assert "step 3/6" not in said
    assert "validation 3/3" not in said
