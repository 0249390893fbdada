"""Small versions of `python -m tests.robustness`: two kills of an adversarial run, bad input, nothing that runs."""

import pytest

from aeic_lightning.errors import UserError
from aeic_lightning.files import file_name
from tests.ranks import finish_ranks
from tests.robustness import processes
from tests.robustness.__main__ import NAMES, SAME, SIGNALS
from tests.robustness.inputs import CASES, Folder, verdict
from tests.robustness.runs import ROOT

# Each kind of input once, and every command that reads a checkpoint with a malicious one; the script tries them all.
FEW = [case for i, case in enumerate(CASES) if i % 4 == 0 or "malicious_zip" in case.name or "misspelt" in case.name]


def test_an_adversarial_run_killed_twice_ends_as_the_undisturbed_one(forked):
    """Between the two players' updates, and in the middle of writing a checkpoint."""
    done = forked.finish("tests.robustness.__main__:main", ["kills", "--stages", "adversary"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| adversary | before_update 3, saving 4 | 2 | yes |" in done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Folder:
    one = Folder(tmp_path_factory.mktemp("inputs"))
    one.train()
    return one


@pytest.mark.parametrize("tests", [*SIGNALS.values(), *SAME.values(), *NAMES.values()])
def test_every_row_of_the_tables_has_tests(tests):
    file, name = tests.split("::")
    assert f"def {name}" in (ROOT / file).read_text()


def test_enough_kinds_are_tried():
    assert len(CASES) >= 100
    assert len(FEW) >= 40
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", FEW, ids=[case.name for case in FEW])
def test_bad_input_is_one_clear_line_and_nothing_runs(folder, case):
    assert verdict(case, folder) == ""


def test_the_malicious_checkpoint_would_run_where_it_is_read_carelessly(folder, tmp_path):
    """Or the test above would prove nothing."""
    import pickle

    from tests.robustness.inputs import Malicious

    proof = tmp_path / "ran"
    pickle.loads(pickle.dumps(Malicious(proof)))
    assert proof.is_file()


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd"])
def test_an_images_name_cannot_lead_out_of_the_folder(name):
    with pytest.raises(UserError, match="leads out of the folder"):
        file_name(name)


def test_two_processes_have_the_gradients_of_the_joint_batch_for_both_players(forked, tmp_path):
    """Two accumulated batches a step; the strategy is plain `ddp`."""

    def launch(where, count, accumulate):
        finish_ranks(forked, where.parent, "tests.robustness.processes:record", where, count, accumulate, count=count)

    got = processes.trial(tmp_path, 2, launch)
    assert max(got.gradients["generator"]) < 1e-4
    assert max(got.gradients["discriminator"]) < 1e-4
    assert got.ranks_agree
    assert got.images_once
    assert got.figures < 1e-4
    assert [name for name in got.files if "tfevents" not in name] == ["hparams.yaml", "last.ckpt", "metrics_val.json"]
    assert len(got.files) == 4, "one process writes"
