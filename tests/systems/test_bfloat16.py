"""`optimization.bfloat16`: what of a training step computes in bfloat16, and what must not."""

import pytest
import torch
from torch import Tensor, nn

from aeic_lightning import torch_settings
from aeic_lightning.errors import UserError
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.frozen import Frozen
from aeic_lightning.models.layers import networks_in_bfloat16
from aeic_lightning.systems import DistillationSystem, OptimizationConfig, TeacherSystem

OBJECTIVE = {"rate": 1.0, "mse": 8.0, "lpips": 1.0, "edge_dists": 0.5}
LOW = OptimizationConfig(learning_rates=[(0, 1e-3)], bfloat16=True)
TAPS = {"L_enc": 0.5, "L_dec": {"weight": 0.02, "taps": ["l_T", {"tap": "h_*", "normalise": True}]}}


def batch(count=2, size=128):
    image = torch.nn.functional.interpolate(torch.rand(count, 3, 8, 8) * 2 - 1, size=(size, size), mode="bicubic")
    return {"image": image.clamp(-1, 1), "name": [str(i) for i in range(count)]}


@pytest.fixture(autouse=True)
def without_a_trainer(monkeypatch):
    monkeypatch.setattr(TeacherSystem, "manual_backward", lambda self, loss: loss.backward())
    monkeypatch.setattr(DistillationSystem, "manual_backward", lambda self, loss: loss.backward())


def types_of_layers(system, run):
    """What each convolution and linear layer of the system, frozen networks included, gave while `run` ran."""
    seen, handles = {}, []
    roots = {"": system} | {f"{n}.": m.net for n, m in system.named_modules() if isinstance(m, Frozen)}
    for prefix, root in roots.items():
        for name, module in root.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):

                def see(module, args, out, name=prefix + name):
                    out = out if isinstance(out, Tensor) else out[0]
                    seen.setdefault(name, (module, set()))[1].add(out.dtype)

                handles.append(module.register_forward_hook(see))
    run()
    for handle in handles:
        handle.remove()
    return seen


def test_networks_are_in_bfloat16_but_for_the_entropy_model_and_depthwise_layers(codec_config, decoder_config):
    codec_config.rate_levels = [2.0, 0.5]
    system = TeacherSystem(codec_config, decoder_config, OBJECTIVE, LOW)
    system.objective.bind(system.model)
    given = batch()
    found = {}

    def run():
        found["loss"], found["x_hat"] = system.both_passes(given)

    seen = types_of_layers(system, run)
    entropy = ("model.codec.h_a.", "model.codec.h_s.", "model.codec.context.", "model.codec.prior.")
    low = set()
    for name, (module, types) in seen.items():
        depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels
        expected = torch.float32 if depthwise or name.startswith(entropy) else torch.bfloat16
        assert types == {expected}, name
        low |= {".".join(name.split(".")[:3])} if expected == torch.bfloat16 else set()
    assert {"model.codec.g_a", "model.codec.g_s", "model.decoder.denoiser", "model.decoder.vae"} < low
    assert any("lpips" in name for name in low), "the networks of the objective"
    assert any(module.groups > 1 for module, _ in seen.values() if isinstance(module, nn.Conv2d))
    assert found["x_hat"].dtype == found["loss"].total.dtype == torch.float32
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in system.model.parameters() if p.grad is not None)


def test_what_leaves_the_networks_is_float32(codec_config, decoder_config):
    model = AEIC(codec_config, decoder_config).train()
    x = batch()["image"]
    paths = ["decoder.denoiser.trunk.mid_block", "codec.g_a"]
    with networks_in_bfloat16():
        output = model(x, tap_paths=paths)
        taps = model.compute_taps(x, [*paths, "h_2", "y"])
    assert {t.dtype for t in [*output.taps.values(), *taps.values(), output.bits_estimate]} == {torch.float32}
    exact = model(x).taps["h_2"]
    assert 0 < (output.taps["h_2"] - exact).abs().max() < 0.1 * exact.abs().max()


def test_gradients_are_those_of_float32_but_for_rounding(codec_config, decoder_config):
    system = TeacherSystem(codec_config, decoder_config, {"rate": 1.0, "mse": 8.0}, LOW)
    for p in system.model.parameters():
        if p.dim() > 1:
            nn.init.normal_(p, std=0.7 / p[0].numel() ** 0.5)
    given, gradients = batch(), []
    for low in (False, True):
        system.in_bfloat16 = low
        system.zero_grad()
        torch.manual_seed(1)
        system.both_passes(given)
        parts = (system.model.codec.h_s, system.model.decoder.vae)
        gradients.append([torch.cat([p.grad.flatten() for p in part.parameters()]) for part in parts])
    for exact, low in zip(*gradients, strict=True):
        assert not torch.equal(exact, low)
        assert torch.nn.functional.cosine_similarity(exact, low, dim=0) > 0.95


def test_evaluation_stays_in_float32(codec_config, decoder_config, loader, trainer):
    system = TeacherSystem(codec_config, decoder_config, {"rate": 1.0, "mse": 8.0}, LOW)
    kinds = {}

    def look(module, args, out):
        kinds.setdefault(system.training, set()).add(out.dtype)

    system.model.decoder.vae.conv_in.register_forward_hook(look)
    system.model.decoder.load_base()
    trainer(1, limit_val_batches=1).fit(system, loader(1), loader(1))
    assert kinds == {True: {torch.bfloat16}, False: {torch.float32}}


def test_the_taps_of_a_teacher_are_cached_apart(codec_config, decoder_config, tmp_path, loader, trainer):
    teacher = TeacherSystem(codec_config, decoder_config, {"mse": 1.0}, OptimizationConfig())
    state = {f"model.{name}": tensor for name, tensor in teacher.model.state_dict().items()}
    torch.save({"state_dict": state, "model_config": teacher.model.config}, tmp_path / "teacher.ckpt")
    system = DistillationSystem(
        codec_config, decoder_config, {"rate": 1.0, "mse": 8.0} | TAPS, LOW,
        teacher=str(tmp_path / "teacher.ckpt"), teacher_cache=str(tmp_path / "cache"),
    )  # fmt: skip
    system.log = lambda *args, **kwargs: None
    for low in (False, True):
        system.in_bfloat16 = low
        system.both_passes(batch(1))
    names = {path.parent.name for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert names == {"float32", "networks_in_bfloat16"}


@pytest.mark.parametrize("quicker", [False, True])
def test_auto_is_what_is_quicker_here(codec_config, decoder_config, quicker, loader, trainer, monkeypatch):
    monkeypatch.setattr(torch_settings, "_bfloat16", quicker)
    system = TeacherSystem(codec_config, decoder_config, {"mse": 1.0}, OptimizationConfig(bfloat16="auto"))
    trainer(1).fit(system, loader(1))
    assert system.in_bfloat16 is quicker


def test_two_precisions_are_refused(codec_config, decoder_config, loader, trainer):
    system = TeacherSystem(codec_config, decoder_config, {"mse": 1.0}, LOW)
    with pytest.raises(UserError, match="both say what is computed"):
        trainer(1, precision="bf16-mixed").fit(system, loader(1))
