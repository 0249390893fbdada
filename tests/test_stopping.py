"""Signals x commands: nothing that a command had begun is left behind."""

import os
import signal
from pathlib import Path

import pytest

from aeic_lightning.cli import COMMANDS, NUMBERS, SAVES, main
from aeic_lightning.codec import Codec
from aeic_lightning.files import write_whole
from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.random_model import random_model, save

SIZES = {"context_width": 16, "context_depth": 1, "l_T_channels": 8, "l_res_channels": 8}
WIDTHS = {"synthesis_widths": [16, 16, 16], "synthesis_depths": [1, 1, 1]}


@pytest.fixture(autouse=True)
def default_signals():
    """What the suite was started with, ignored or not, decides nothing here."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in SAVES])
def test_a_command_takes_back_what_it_had_begun(command, number, tmp_path, monkeypatch, capsys):
    class Module:
        def add_arguments(self, parser): ...

        def run(self, args, extra):
            monkeypatch.setattr(Path, "write_bytes", lambda *_: os.kill(os.getpid(), number))
            write_whole(tmp_path / "out" / "file", b"all of it")

    monkeypatch.setattr("aeic_lightning.cli.import_module", lambda name: Module())
    assert main([command]) == 128 + number
    assert capsys.readouterr().err == "stopped\n"
    assert list((tmp_path / "out").iterdir()) == []
    assert signal.getsignal(number) is signal.SIG_DFL


@pytest.mark.parametrize("number", NUMBERS)
def test_export_leaves_no_half_of_a_folder(number, tmp_path, monkeypatch):
    save(random_model(CodecConfig([8, 8, 16, 16, 32], [1] * 5, **SIZES, **WIDTHS)), tmp_path / "last.ckpt")
    write = Codec.write

    def interrupted(codec, folder, name, **options):
        write(codec, folder, name, **options)
        assert (folder / "model.safetensors").is_file()
        os.kill(os.getpid(), number)

    monkeypatch.setattr(Codec, "write", interrupted)
    words = ["export", "--checkpoint", str(tmp_path / "last.ckpt"), "--weights", "-o", str(tmp_path / "exported")]
    assert main(words) == 128 + number
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("number", NUMBERS)
def test_an_ignored_signal_stays_ignored(number, monkeypatch):
    """As under `nohup`."""

    class Module:
        def add_arguments(self, parser): ...

        def run(self, args, extra):
            os.kill(os.getpid(), number)

    monkeypatch.setattr("aeic_lightning.cli.import_module", lambda name: Module())
    signal.signal(number, signal.SIG_IGN)
    assert main(["evaluate"]) == 0


def test_a_folder_that_is_no_run_is_skipped_with_a_warning(tmp_path, monkeypatch, capsys):
    """`report DIR/*/` names folders of a sweep that hold no run; one that is named alone is an error as before."""
    given = []
    monkeypatch.setattr(
        "aeic_lightning.study.report.page.write_report", lambda results, *_, **__: given.append(results)
    )
    run, other, file = tmp_path / "run", tmp_path / "jobs", tmp_path / "anchors.json"
    for folder in (run, other):
        folder.mkdir()
    (run / "run.json").write_text("{}")
    file.write_text("{}")
    words = ["report", "-o", str(tmp_path / "page.html")]
    assert main([*words, str(run), str(other), str(file)]) == 0
    assert given.pop() == [run, file]
    assert capsys.readouterr().err == f"warning: {other} was skipped: it holds no run\n"
    main([*words, str(other)])
    assert given.pop() == [other]
