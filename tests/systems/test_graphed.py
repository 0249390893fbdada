"""A step that a CUDA graph can record: it takes nothing from the CPU, waits for nothing, and is the usual step."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aeic_lightning.errors import UserError
from aeic_lightning.models.frozen import Frozen
from aeic_lightning.systems import DistillationSystem, OptimizationConfig, TeacherSystem
from aeic_lightning.systems.graphed import check_graph

OBJECTIVE = {
    "rate": {"weight": 1.0, "warmup_steps": 10},
    "mse": 8.0,
    "chroma": 4.0,
    "lpips": {"weight": 1.0, "share": 0.5},
    "edge_dists": {"weight": 0.5, "share": 0.5},
}
TAPS = {"L_enc": 0.5, "L_dec": {"weight": 0.02, "taps": ["l_T", {"tap": "h_*", "normalise": True}]}}


@pytest.fixture
def rates(codec_config):
    codec_config.rate_levels = [4.0, 1.0, 0.25]
    return codec_config


@pytest.fixture
def distilled(rates, decoder_config, tmp_path) -> DistillationSystem:
    teacher = TeacherSystem(rates, decoder_config, {"mse": 1.0}, OptimizationConfig())
    state = {f"model.{name}": tensor for name, tensor in teacher.model.state_dict().items()}
    torch.save({"state_dict": state, "model_config": teacher.model.config}, tmp_path / "teacher.ckpt")
    return DistillationSystem(
        rates, decoder_config, OBJECTIVE | TAPS, OptimizationConfig(), teacher=str(tmp_path / "teacher.ckpt")
    )


class NoCopies(TorchDispatchMode):
    """Notes every tensor that goes from the CPU to another device; FakeTensorMode refuses the other way by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.copied: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        devices = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.dim()}
        if "cpu" in devices and any(isinstance(x, Tensor) and x.is_cuda for x in tree_leaves(result)):
            self.copied.append(str(func))
        return result


def everything(module: nn.Module) -> Iterator[nn.Module]:
    """All modules, the networks that `Frozen` keeps out of the tree as well."""
    for part in module.modules():
        yield part
        if isinstance(part, Frozen):
            yield from everything(part.net)


def on_a_gpu(module: nn.Module) -> None:
    """Stand-ins on a GPU, of the same shapes, for all tensors of a module."""
    for part in everything(module):
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    moved = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                    tensors[name] = nn.Parameter(moved, tensor.requires_grad) if tensors is part._parameters else moved


def test_a_distillation_step_needs_nothing_of_the_cpu(distilled):
    distilled.train()
    with FakeTensorMode(), torch.no_grad():
        on_a_gpu(distilled)
        x, level = torch.zeros(4, 3, 128, 128, device="cuda"), torch.zeros(4, device="cuda")
        weights = torch.zeros(len(distilled.objective.terms), device="cuda")
        with NoCopies() as seen:
            output = distilled(x, level)
            loss = distilled.objective({"image": x}, output, distilled.teacher_taps(x, output.level), weights=weights)
        assert loss.total.is_cuda
        assert not seen.copied
        with NoCopies() as seen:  # a step that draws its levels takes them from the CPU, and is seen to
            distilled(x)
        assert seen.copied


def test_weights_as_a_tensor_are_those_of_the_step(distilled):
    distilled.train()
    x, level = torch.rand(4, 3, 128, 128) * 2 - 1, torch.tensor([0.0, 1.0, 2.0, 0.0])
    losses, gradients = [], []
    for given in ({"step": 3}, {"weights": torch.tensor(distilled.objective.weights_at(3))}):
        torch.manual_seed(0)
        output = distilled(x, level)
        loss = distilled.objective({"image": x}, output, distilled.teacher_taps(x, level), **given)
        distilled.zero_grad()
        loss.total.backward()
        losses.append(loss.total)
        gradients.append([p.grad.clone() for p in distilled.model.parameters() if p.grad is not None])
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize(
    ("change", "objective", "words"),
    [
        ({}, {}, "needs a GPU"),
        ({"accumulate": 2}, {}, "accumulate: 1"),
        ({}, {"rate": {"weight": 1.0, "target": 0.1}, "lpips": 0, "edge_dists": 0}, "without rate.target"),
        ({}, {"adversarial": {"weight": 0.1, "backbone": "lite0"}}, "without an adversary"),
    ],
)
def test_what_cannot_be_replayed_is_refused(
    codec_config, decoder_config, loader, trainer, change, objective, words, monkeypatch
):
    optimization = OptimizationConfig(cuda_graph=True, **change)
    system = TeacherSystem(codec_config, decoder_config, OBJECTIVE | objective, optimization)
    fitted = trainer(1)
    if words == "needs a GPU":
        with pytest.raises(UserError, match=words):
            fitted.fit(system, loader(1))
        return
    monkeypatch.setattr(type(fitted.strategy), "root_device", torch.device("cuda"))  # on a machine that has one
    system.trainer = fitted
    with pytest.raises(UserError, match=words):
        check_graph(system)
