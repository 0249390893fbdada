import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import two_processes

SCRIPT = Path(two_processes.__file__)


def test_two_processes_train_on_the_same_stream_and_evaluate_each_image_once(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
    command = [sys.executable, str(SCRIPT), str(tmp_path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
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
