"""Distances between taps, against the papers' formulas in numpy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aeic_lightning.errors import UserError
from aeic_lightning.losses import AttentionTransfer, CosineDistillation, Objective, RelationalDistillation
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import CodecConfig


def huber(a, b):
    d = np.abs(a - b)
    return np.where(d < 1, d**2 / 2, d - 0.5)


def test_cosine_is_the_angle_at_each_position():
    s, t = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    a, b = (np.moveaxis(v.numpy().astype(float), 1, -1).reshape(-1, 5) for v in (s, t))
    expected = 1 - np.mean([x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)])
    term = CosineDistillation()
    assert term.distance(s, t).item() == pytest.approx(expected, rel=1e-5)
    assert term.distance(7 * s, s).item() == pytest.approx(0, abs=1e-6)


def test_attention_is_where_the_activations_are_whatever_the_widths():
    s, t = torch.randn(2, 5, 3, 4), torch.randn(2, 8, 3, 4)

    def maps(v):
        energy = (v.numpy().astype(float) ** 2).sum(1).reshape(len(v), -1)
        return energy / np.linalg.norm(energy, axis=1, keepdims=True)

    expected = ((maps(s) - maps(t)) ** 2).sum(1).mean()
    term = AttentionTransfer()
    assert term.distance(s, t).item() == pytest.approx(expected, rel=1e-5)
    assert term.distance(3 * s, s).item() == pytest.approx(0, abs=1e-6)


def test_relations_are_distances_and_angles():
    s, t = torch.randn(2, 3, 1, 2), torch.randn(2, 4, 1, 2)  # four vectors each
    a, b = (np.moveaxis(v.numpy().astype(float), 1, -1).reshape(4, -1) for v in (s, t))
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]

    def lengths(v):
        found = np.array([np.linalg.norm(v[i] - v[j]) for i, j in pairs])
        return found / found.mean()

    def cosine(v, i, j, k):
        if j in (i, k):
            return 0.0
        e, f = v[i] - v[j], v[k] - v[j]
        return e @ f / np.linalg.norm(e) / np.linalg.norm(f)

    every = [(i, j, k) for i in range(4) for j in range(4) for k in range(4)]
    by_distance = huber(lengths(a), lengths(b)).mean()
    by_angle = np.mean([huber(cosine(a, *ijk), cosine(b, *ijk)) for ijk in every])
    term = RelationalDistillation(distance_weight=0.5, angle_weight=3.0)
    assert term.distance(s, t).item() == pytest.approx(0.5 * by_distance + 3 * by_angle, rel=1e-4)
    # A rotation, a shift and a scale keep all relations.
    turn = torch.linalg.qr(torch.randn(3, 3)).Q
    moved = 4 * torch.einsum("oi,bihw->bohw", turn, s) + 1
    assert term.distance(moved, s).item() == pytest.approx(0, abs=1e-5)


def test_examples_bound_the_work_and_equal_vectors_keep_the_gradient_finite():
    s = torch.zeros(2, 3, 8, 8, requires_grad=True)
    term = RelationalDistillation(examples=5)
    assert len(term._vectors(s)) == 5
    term.distance(s, torch.randn(2, 4, 8, 8)).backward()
    assert s.grad.isfinite().all()
    with pytest.raises(UserError, match="an angle has three points"):
        RelationalDistillation(examples=2)


def test_by_name_each_trains_the_student_and_is_logged_by_side(codec_config, decoder_config):
    narrow = CodecConfig(**vars(codec_config) | {"widths": [8, 8, 8, 16, 16], "context_width": 8})
    student, teacher = AEIC(narrow, decoder_config), AEIC(codec_config, decoder_config).eval()
    taps = ["y", "l_0"]
    terms = {"cosine": 0.5, "attention": {"weight": 2.0, "taps": taps}, "relational": {"weight": 1.0, "taps": taps}}
    objective = Objective(terms)
    objective.bind(student, teacher)
    x = torch.rand(2, 3, 128, 64) * 2 - 1
    output = student(x)
    taught = {name: tap.detach() for name, tap in teacher.compute_taps(x, objective.teacher_taps).items()}
    for name, term in objective.terms.items():
        student.zero_grad()
        total, losses = term({}, SimpleNamespace(taps=output.taps), taught)
        total.backward(retain_graph=True)
        assert sum(p.grad.abs().sum() for p in student.codec.g_a.parameters() if p.grad is not None) > 0, name
        assert f"distill/encoder/y.{name}" in losses
        assert f"distill/decoder/l_0.{name}" in losses
        assert len(losses) == (len(student.taps) if name == "cosine" else len(taps)), name
    assert len(objective.terms["cosine"].projections) == len(student.taps)
    assert not list(objective.terms["relational"].parameters())


def test_without_projections_a_tap_has_to_become_the_teachers(codec_config, decoder_config):
    student, teacher = AEIC(codec_config, decoder_config), AEIC(codec_config, decoder_config).eval()
    objective = Objective({"L_enc": {"weight": 1.0, "taps": ["y"], "projects": False}})
    objective.bind(student, teacher)
    assert not list(objective.terms["L_enc"].parameters())
    y = torch.randn(2, 16, 3, 4)
    for factor, expected in ((1.0, 0.0), (2.0, y.square().mean().item())):
        total, _ = objective.terms["L_enc"]({}, SimpleNamespace(taps={"y": factor * y}), {"y": y})
        assert total.item() == pytest.approx(expected, rel=1e-6)
    narrow = AEIC(CodecConfig(**vars(codec_config) | {"widths": [8, 8, 8, 16, 16]}), decoder_config)
    with pytest.raises(UserError, match="'y' has 16 channels in the student and 32 in the teacher"):
        Objective({"L_enc": {"weight": 1.0, "taps": ["y"], "projects": False}}).bind(narrow, teacher)
