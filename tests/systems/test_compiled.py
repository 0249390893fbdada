"""`optimization.compile`: blocks of a training step by compiled code; evaluations and checkpoints as without."""

import copy

import pytest
import torch

from aeic_lightning.errors import UserError
from aeic_lightning.models.layers import ContextLayer, StarBlock
from aeic_lightning.systems import DistillationSystem, OptimizationConfig, TeacherSystem, compiled

INSIDE = "codec.g_a.3.fc2"
"""A tap whose hook is inside a block, and renewed by every pass."""
OBJECTIVE = {"rate": 1.0, "mse": 8.0, "L_enc": {"weight": 0.5, "taps": ["y", INSIDE]}}


@pytest.fixture
def distilled(codec_config, decoder_config, tmp_path, monkeypatch) -> DistillationSystem:
    monkeypatch.setattr(DistillationSystem, "manual_backward", lambda self, loss: loss.backward())
    teacher = TeacherSystem(codec_config, decoder_config, {"mse": 1.0}, OptimizationConfig())
    state = {f"model.{name}": tensor for name, tensor in teacher.model.state_dict().items()}
    torch.save({"state_dict": state, "model_config": teacher.model.config}, tmp_path / "teacher.ckpt")
    return DistillationSystem(
        codec_config, decoder_config, OBJECTIVE, OptimizationConfig(), teacher=str(tmp_path / "teacher.ckpt")
    )


def passes(system, x):
    """Losses and gradients of a step."""
    torch.manual_seed(0)
    system.train().zero_grad()
    loss, _ = system.both_passes({"image": x}, step=3)
    return loss.total, loss.terms, {name: p.grad for name, p in system.named_parameters() if p.grad is not None}


def test_a_compiled_step_is_the_plain_one(distilled, monkeypatch):
    monkeypatch.setattr(compiled, "BLOCKS", (StarBlock, ContextLayer))  # of the decoder's: tests/test_benchmarks.py
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)  # else the rest is not compiled
    x = torch.nn.functional.interpolate(torch.rand(2, 3, 8, 8) * 2 - 1, size=(128, 128), mode="bicubic").clamp(-1, 1)
    names, picture = list(distilled.state_dict()), distilled.eval().model(x).x_hat
    plain = passes(distilled, x)
    built, runs = [], []

    def backend(graph, inputs):
        built.append(graph)
        return lambda *args: runs.append(graph) or graph(*args)

    del distilled.compiled  # as it is kept from the step above
    distilled.optimization.compile = backend
    torch.testing.assert_close(passes(distilled, x), plain, rtol=1e-5, atol=1e-6)
    forms, first = len(built), len(runs)
    torch.testing.assert_close(passes(distilled, x), plain, rtol=1e-5, atol=1e-6)
    assert (len(built), len(runs)) == (forms, 2 * first)  # a graph may be recorded: nothing is built any more
    models = distilled.model, distilled.teacher.net
    blocks = {block for model in models for block in model.modules() if isinstance(block, compiled.BLOCKS)}
    left = blocks - {block for block, _ in distilled.compiled.calls}
    assert left == {model.get_submodule(INSIDE.removesuffix(".fc2")) for model in models}
    ran = len(runs)
    assert list(distilled.state_dict()) == names
    assert torch.equal(distilled.eval().model(x).x_hat, picture)
    assert torch.equal(copy.deepcopy(distilled.model)(x).x_hat, picture)
    assert len(runs) == ran


def test_shares_of_a_base_are_not_compiled():
    with pytest.raises(UserError, match="leave one of them out"):
        OptimizationConfig(compile=True, shard_base=True).check()
