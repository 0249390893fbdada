import json

import pytest

from tests.datamodules import two_processes
from tests.ranks import finish_ranks


def test_two_processes_train_on_the_same_stream_and_evaluate_each_image_once(forked, tmp_path):
    finish_ranks(forked, tmp_path, "tests.datamodules.two_processes:main", tmp_path)
    two = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    one = two_processes.run(tmp_path, devices=1, batch_size=4)

    assert [len(part["train"]) for part in two] == [18, 18]
    for step in range(9):  # three epochs of three steps
        together = [sample for part in two for sample in part["train"][step * 2 : step * 2 + 2]]
        assert sorted(together) == sorted(one["train"][step * 4 : step * 4 + 4])
    for stage, passes in (("val", 3), ("test", 1)):
        assert len(one[stage]) == 3 * passes
        assert sorted(sample for part in two for sample in part[stage]) == sorted(one[stage])
    assert two[0]["mean"] == pytest.approx(one["mean"])
