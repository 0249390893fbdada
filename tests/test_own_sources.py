"""The sources of a user's own classes: found, hashed, copied, and those of libraries left alone."""

import hashlib
import importlib
import sys
from pathlib import Path

import pytest

from aeic_lightning.codec import Codec
from aeic_lightning.config import run_record
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.own_classes import copy_sources, own_sources, source_digests
from tests.models import plain_encoder

OWN = {"class_path": "tests.models.plain_encoder.PlainEncoder", "init_args": {"width": 8}}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of one's own: a term, a helper that it imports, and a module that nothing imports."""
    folder = tmp_path / "made_up"
    (folder / "parts").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "parts" / "__init__.py").write_text("")
    (folder / "term.py").write_text("import torch\nfrom .parts import helper\nclass Mine: pass\n")
    (folder / "parts" / "helper.py").write_text("import json\n")
    (folder / "other.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.startswith("made_up")]:
        del sys.modules[name]


def test_own_modules_are_found_with_what_they_import(package, tmp_path):
    importlib.import_module("made_up.other")
    config = {
        "model": {"class_path": "aeic_lightning.systems.TeacherSystem", "terms": [{"class_path": "made_up.term.Mine"}]},
        "trainer": {"callbacks": [{"class_path": "callbacks.progress.Progress"}, {"class_path": "torch.nn.ReLU"}]},
        "broken": {"class_path": "made_up.missing.Class"},
    }
    found = own_sources(config)
    assert list(found) == ["made_up.parts", "made_up.parts.helper", "made_up.term"]
    digest = hashlib.sha256((package / "term.py").read_bytes()).hexdigest()
    assert source_digests(found)["made_up.term"] == digest
    copy_sources(found, tmp_path / "kept")
    copies = sorted(str(p.relative_to(tmp_path / "kept")) for p in (tmp_path / "kept").rglob("*.py"))
    assert copies == ["made_up/parts/__init__.py", "made_up/parts/helper.py", "made_up/term.py"]
    assert (tmp_path / "kept/made_up/term.py").read_bytes() == (package / "term.py").read_bytes()


def test_a_helper_that_is_edited_changes_a_digest(package):
    before = source_digests(own_sources({"class_path": "made_up.term.Mine"}))
    (package / "parts" / "helper.py").write_text("import json  # edited\n")
    after = source_digests(own_sources({"class_path": "made_up.term.Mine"}))
    assert {name for name in before if before[name] != after[name]} == {"made_up.parts.helper"}


def test_saved_weights_bring_the_source_of_their_encoder(codec_config, decoder_config, tmp_path):
    config = type(codec_config)(**vars(codec_config) | {"widths": None, "depths": None, "encoder": OWN})
    model = AEIC(config, decoder_config).eval()
    model.prior.update_quantiles()
    Codec(model).save_pretrained(tmp_path / "mine")
    copied = tmp_path / "mine" / "sources" / "tests" / "models" / "plain_encoder.py"
    assert copied.read_bytes() == Path(plain_encoder.__file__).read_bytes()


def test_a_run_keeps_its_own_sources(tmp_path, package):
    (tmp_path / "config.yaml").write_text("model: {class_path: made_up.term.Mine}\n")
    kept = run_record._keep_sources(tmp_path / "config.yaml", tmp_path / "sources")
    assert set(kept) == {"made_up.parts", "made_up.parts.helper", "made_up.term"}
    assert (tmp_path / "sources/made_up/term.py").is_file()
