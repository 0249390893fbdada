"""The one place where the terms are built and summed."""

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from aeic_lightning import losses
from aeic_lightning.errors import UserError
from aeic_lightning.losses import Objective, Term
from aeic_lightning.losses.adversarial import generator_loss
from aeic_lightning.losses.objective import describe_objective, objective_weights, read_objective
from aeic_lightning.losses.term import pair_of
from aeic_lightning.metrics.features import LPIPS, EdgeAwareDISTS, Pair, SemanticLoss
from aeic_lightning.models.aeic import AEICOutput
from aeic_lightning.models.backbones import Lite0


def evaluate(terms, x_hat, x, bits=None, step=None, **output):
    output = SimpleNamespace(x_hat=x_hat, bits_estimate=torch.ones(len(x)) if bits is None else bits, **output)
    return Objective(terms)({"image": x}, output, None, step)


@pytest.fixture
def images():
    return torch.rand(2, 3, 64, 96) * 2 - 1, torch.rand(2, 3, 64, 96) * 2 - 1


class LogitsOfZero(Term):
    """A term of someone else's, with an argument."""

    def __init__(self, target: float = 0.0):
        super().__init__()
        self.target = target

    def forward(self, batch, output, teacher):
        distance = (output.x_hat.mean() - self.target).abs()
        return distance, {"seen": batch["image"].mean()}


class StageError(Term):
    """The squared error of a stage of EfficientNet-Lite0."""

    needs_picture = True

    def __init__(self):
        super().__init__()
        self.network = Lite0()

    def forward(self, batch, output, teacher):
        features, reference = pair_of(batch, output).features(self.network)
        return (features[1] - reference[1]).square().mean()


def test_sum_of_weighted_terms(images):
    x_hat, x = images
    objective = Objective(
        {
            "rate": {"weight": 3, "warmup_steps": 10},
            "mse": 2,
            "lpips": 0.5,
            "edge_dists": {"weight": 0.25},
            "semantic": 0.1,
            "adversarial": 0.2,
            "mine": {"class_path": f"{__name__}.LogitsOfZero", "weight": 0.3, "init_args": {"target": 2.0}},
        }
    ).eval()
    bits = torch.tensor([100.0, 300.0])
    out = objective({"image": x}, SimpleNamespace(x_hat=x_hat, bits_estimate=bits), None, step=5)
    bpp = 200.0 / (64 * 96)
    expected = (
        0.5 * 3 * bpp
        + 2 * ((x_hat - x) ** 2).mean()
        + 0.5 * LPIPS()(x_hat, x).mean()
        + 0.25 * EdgeAwareDISTS()(x_hat, x).mean()
        + 0.1 * SemanticLoss()(x_hat, x).mean()
        + 0.2 * generator_loss(objective.adversary.discriminator(x_hat))
        + 0.3 * (2 - x_hat.mean())
    )
    assert out.total.item() == pytest.approx(expected.item(), rel=1e-5)
    names = {"bpp_estimate", "mse", "lpips", "edge_dists", "semantic", "adversarial", "mine", "seen"}
    assert out.terms.keys() == names
    assert out.terms["bpp_estimate"].item() == pytest.approx(bpp)


def test_warm_ups_end_and_none_is_none():
    rate = read_objective({"rate": {"weight": 2.0, "warmup_steps": 4}})["rate"]
    assert [rate.weight_at(step) for step in (0, 1, 4, 9, None)] == [0.0, 0.5, 2.0, 2.0, 2.0]
    assert read_objective({"rate": 2.0})["rate"].weight_at(0) == 2.0


LPIPS_, EDGES, WHOLE, SEMANTIC = "lpips", "edge_dists", "whole crop", "semantic"
PASSES = {
    # Picture and image each pass once; of `edges` their edges as well, of a discriminator the augmented picture alone.
    64: {
        **{(LPIPS_,): 2, (EDGES,): 4, (WHOLE,): 4, (SEMANTIC,): 2, ("adversarial",): 1},
        **{(LPIPS_, EDGES): 4, (LPIPS_, WHOLE): 4, (LPIPS_, SEMANTIC): 2, (LPIPS_, "adversarial"): 3},
        **{(EDGES, WHOLE): 4, (EDGES, SEMANTIC): 4, (EDGES, "adversarial"): 5},
        **{(WHOLE, SEMANTIC): 4, (WHOLE, "adversarial"): 5, (SEMANTIC, "adversarial"): 3},
    },
    # Above 224, patches are cut, and images are reduced for an embedding: these see something else than the others.
    232: {
        **{(LPIPS_,): 2, (EDGES,): 4, (WHOLE,): 4, (SEMANTIC,): 2, ("adversarial",): 1},
        **{(LPIPS_, EDGES): 6, (LPIPS_, WHOLE): 4, (LPIPS_, SEMANTIC): 4, (LPIPS_, "adversarial"): 3},
        **{(EDGES, WHOLE): 8, (EDGES, SEMANTIC): 6, (EDGES, "adversarial"): 5},
        **{(WHOLE, SEMANTIC): 6, (WHOLE, "adversarial"): 5, (SEMANTIC, "adversarial"): 3},
    },
}
"""How often Lite0 runs for a term, and for each pair of terms, by the side of the crops."""


def entry(term, **more):
    path = {"class_path": "aeic_lightning.losses.EdgeAwareDISTSTerm", "init_args": {"whole": True}}
    return {"weight": 0.5} | more | (path if term == WHOLE else {})


@pytest.fixture
def passes(monkeypatch):
    """Shapes of what passed through an EfficientNet-Lite, and whether a gradient was wanted."""
    seen, network = [], type(Lite0().net)
    forward = network.forward_intermediates

    def counted(net, x, **options):
        seen.append((tuple(x.shape), torch.is_grad_enabled()))
        return forward(net, x, **options)

    monkeypatch.setattr(network, "forward_intermediates", counted)
    return seen


@pytest.mark.parametrize(("size", "terms"), [(size, terms) for size, found in PASSES.items() for terms in found])
def test_each_network_sees_picture_and_image_once(size, terms, passes, monkeypatch):
    """Counted with a network that does next to nothing: what counts is who asks."""
    monkeypatch.setattr(Lite0, "features", lambda net, x: passes.append(x.shape) or tiny_maps(x))
    x_hat, x = torch.rand(2, 2, 3, size, size) * 2 - 1
    evaluate({term: entry(term) for term in terms}, x_hat, x)
    assert len(passes) == PASSES[size][terms]


def tiny_maps(x):
    """Maps of the sizes of Lite0's, of the pooled image."""
    pooled = torch.nn.functional.adaptive_avg_pool2d(x, 4).mean(1, keepdim=True)
    return [pooled.expand(-1, channels, -1, -1) for channels in Lite0.channels]


@pytest.mark.parametrize("more", [{}, {"share": 0.5}])
def test_shared_features_give_the_losses_and_gradients_of_terms_alone(more, passes):
    x_hat, x = torch.rand(2, 4, 3, 64, 64) * 2 - 1
    x_hat.requires_grad_()
    terms = {LPIPS_: entry(LPIPS_), EDGES: entry(EDGES, **more), SEMANTIC: entry(SEMANTIC, **more)}

    def step(terms):
        torch.manual_seed(1)  # of the share
        output = AEICOutput(x_hat, *[None] * 6)
        total = Objective(terms)({"image": x}, output).total
        return total.detach(), torch.autograd.grad(total, x_hat)[0]

    together = step(terms)
    edges = (2 if more else 4, 3, 64, 64)
    whole = [((4, 3, 64, 64), True), ((4, 3, 64, 64), False)]  # the semantic loss sees what LPIPS saw
    assert passes == [*whole, (edges, True), (edges, False)]
    alone = [step({name: term}) for name, term in terms.items()]
    torch.testing.assert_close(together[0], sum(total for total, _ in alone), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(together[1], sum(gradient for _, gradient in alone), rtol=1e-4, atol=1e-7)


def test_a_term_of_someone_elses_shares_features_as_well(passes):
    x_hat, x = torch.rand(2, 1, 3, 64, 64) * 2 - 1
    mine = {"class_path": f"{__name__}.StageError", "weight": 0.1}
    found = evaluate({"lpips": 1.0, "mine": mine}, x_hat, x).terms["mine"]
    assert len(passes) == 2
    features, reference = Lite0().features(x_hat), Lite0().features(x)
    assert found.item() == pytest.approx((features[1] - reference[1]).square().mean().item(), rel=1e-5)


def test_features_without_a_graph_are_no_ones_gradient(passes):
    pair, network = Pair(torch.zeros(1, 3, 32, 32, requires_grad=True), torch.zeros(1, 3, 32, 32)), Lite0()
    with torch.no_grad():
        assert not pair.features(network)[0][0].requires_grad
    maps_hat, maps = pair.features(network)
    assert maps_hat[0].requires_grad
    assert not maps[0].requires_grad


def test_terms_of_weight_zero_are_not_built(images):
    terms = {"rate": 1, "mse": 1.0, "lpips": 0, "semantic": None, "edge_dists": {"weight": 0.0, "backbone": "vgg"}}
    assert set(Objective(terms).terms) == {"rate", "mse"}
    assert set(evaluate(terms, *images).terms) == {"bpp_estimate", "mse"}


def test_gradients_reach_the_reconstruction_and_the_bits(images):
    x_hat, x = images
    x_hat.requires_grad_()
    bits = torch.tensor([10.0, 20.0], requires_grad=True)
    evaluate({"rate": 0.8, "mse": 2.0, "lpips": 1.0, "semantic": 0.1}, x_hat, x, bits).total.backward()
    assert (x_hat.grad != 0).any()
    assert torch.allclose(bits.grad, torch.full((2,), 0.8 / 2 / (64 * 96)))


def test_each_image_may_have_its_own_weight_of_the_rate(images):
    bits, weight = torch.tensor([100.0, 300.0]), torch.tensor([2.0, 0.5])
    out = evaluate({"rate": 4.0}, *images, bits, rate_weight=weight)
    assert out.total.item() == pytest.approx(4 * (200 + 150) / 2 / (64 * 96))
    assert out.terms["bpp_estimate"].item() == pytest.approx(200 / (64 * 96))


def test_a_file_that_includes_another_changes_one_weight():
    """What OmegaConf makes of an include or an override, as the experiment files do it."""
    base = {"rate": 0.8, "lpips": {"weight": 1.0, "backbone": "vgg"}, "semantic": 0.1}
    merged = OmegaConf.merge(base, {"rate": {"weight": 2, "warmup_steps": 3}, "lpips": {"weight": 0.5}, "semantic": 0})
    entries = read_objective(OmegaConf.to_container(merged))
    assert {name: (entry.weight, entry.warmup_steps) for name, entry in entries.items()} == {
        "rate": (2.0, 3),
        "lpips": (0.5, 0),
    }
    assert entries["lpips"].arguments == {"backbone": "vgg"}


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"lpipps": 1.0}, r"no term 'lpipps'; did you mean lpips\?"),
        (
            {"cross_entropy": 0.5},
            r"needs a class_path \(to change its weight alone, set objective.cross_entropy.weight",
        ),
        ({"lpips": {"weight": 1.0, "bakbone": "vgg"}}, "LPIPSTerm does not take 'bakbone'; did you mean backbone"),
        ({"lpips": {"weight": 1.0, "backbone": "vvg"}}, "LPIPS has no backbone 'vvg'"),
        ({"semantic": {"weight": 1.0, "backbone": "clop"}}, "loss has no backbone 'clop': choose lite0 or clip"),
        ({"adversarial": {"weight": 1.0, "backbone": "vgg"}}, "no backbone 'vgg': choose lite0, hed or dinov3"),
        ({"mse": -1.0}, "objective.mse: weight must be a number, 0 or more, not -1.0"),
        ({"mse": "much"}, "objective.mse: weight must be a number"),
        ({"rate": {"weight": 1.0, "warmup_steps": -1}}, "warmup_steps must be a number"),
        (
            {"mine": {"class_path": "aeic_lightning.losses.mse.Term2"}},
            r"module aeic_lightning\.losses has no Term2; did you mean Term",
        ),
        ({"mine": {"class_path": "nowhere.Term"}}, "class_path nowhere.Term cannot be imported"),
        ({"mine": {"class_path": "aeic_lightning.losses.Terms"}}, r"module .* has no Terms; did you mean Term\?"),
        ({"mine": {"class_path": "torch.nn.Identity"}}, "is no subclass of aeic_lightning.losses.Term"),
        ({"mse": 0}, "no term has a weight above 0"),
        ({"L_enc": 1.0}, "there is no teacher; train with DistillationSystem"),
    ],
)
def test_what_is_wrong_is_said_in_words(terms, message):
    with pytest.raises(UserError, match=message):
        Objective(terms).bind(torch.nn.Identity())


@pytest.mark.parametrize(
    ("name", "built", "backbone"),
    [
        ("lpips", "term.LPIPS", "vgg"),
        ("semantic", "term.SemanticLoss", "clip"),
        ("adversarial", "adversarial.ProjectedDiscriminator", "dinov3"),
        ("edge_dists", "term.FORMS", "vgg"),
    ],
)
def test_terms_are_built_on_the_network_that_the_config_names(monkeypatch, name, built, backbone):
    asked = []

    def build(backbone, **_):
        asked.append(backbone)
        return torch.nn.Identity()

    builder = {"ours": build, "released": build} if built.endswith("FORMS") else build
    monkeypatch.setattr(f"aeic_lightning.losses.{built}", builder)
    Objective({name: {"weight": 0.1, "backbone": backbone}})
    assert asked == [backbone]


@pytest.mark.parametrize("path", ["mse.MSE", "chroma.Chroma", "relational.RelationalDistillation", "tap_term.TapTerm"])
def test_a_term_is_found_by_the_path_that_it_once_had(path):
    (entry,) = read_objective({"old": {"class_path": f"aeic_lightning.losses.{path}"}}).values()
    assert entry.kind is getattr(losses, path.split(".")[1])


def test_descriptions_need_no_network(monkeypatch):
    """Of a backbone whose weights are not there, of an older config, and of a term without a description."""

    def build(module):
        raise AssertionError("a network was built")

    monkeypatch.setattr(torch.nn.Module, "__init__", build)
    mine = {"class_path": f"{__name__}.LogitsOfZero", "weight": 0.3}
    new = {"objective": {"lpips": {"weight": 1.0, "backbone": "vgg"}, "adversarial": 0.1, "mse": 0, "mine": mine}}
    found = {term.entry.name: term.description for term in describe_objective(new)}
    assert {name: (d.metric, d.backbone) for name, d in found.items()} == {
        "lpips": ("lpips_vgg", "vgg"), "adversarial": (None, "lite0"), "mine": (None, None)
    }  # fmt: skip
    old = {
        "loss": {"rate": 2.0, "mse": 8.0, "lpips": 0.0, "edge_dists": 0.2, "dists_backbone": "vgg", "adversarial": 0.1},
        "optimization": {"discriminator": "dinov3"},
        "beta1": 0.0,
        "beta2": 0.001,
    }
    found = {term.entry.name: term.description for term in describe_objective(old)}
    assert found.keys() == {"rate", "mse", "edge_dists", "adversarial", "L_dec"}
    assert (found["edge_dists"].metric, found["adversarial"].backbone) == ("dists", "dinov3")
    weights = objective_weights(old)
    assert (weights["rate"], weights["L_enc"], weights["L_dec"], weights["lpips"]) == (2.0, 0.0, 0.001, 0.0)


class Seen(Term):
    """Keeps the images that it was shown."""

    of_single_images = True

    def forward(self, batch, output, teacher):
        self.images = (batch["image"], output.x_hat)
        return (output.x_hat - batch["image"]).square().mean()


def test_a_share_of_the_images_is_drawn_anew_and_is_the_same_for_all_terms():
    term = {"class_path": f"{__name__}.Seen", "share": 0.5}
    objective = Objective({"one": term, "two": term, "all": {"class_path": f"{__name__}.Seen"}})
    images = torch.arange(8.0).reshape(8, 1, 1, 1).expand(8, 3, 4, 4)
    output = AEICOutput(images + 1, *[None] * 6)
    torch.manual_seed(0)
    drawn = []
    for _ in range(40):
        found = objective({"image": images}, output)
        one, two, whole = (term.images for term in objective.terms.values())
        assert torch.equal(one[1], one[0] + 1), "picture and image belong together"
        assert all(a is b for a, b in zip(one, two, strict=True)), "so that terms on one network share its features"
        assert whole[0] is images
        assert found.total == 3
        drawn.append(sorted({int(image[0, 0, 0]) for image in one[0]}))
    assert {len(rows) for rows in drawn} == {4}
    assert len(set(map(tuple, drawn))) > 20
    assert {row for rows in drawn for row in rows} == set(range(8))
    objective.eval()({"image": images}, output)
    assert objective.terms["one"].images[0] is images, "all of them outside of training"


@pytest.mark.parametrize(
    ("term", "words"),
    [({"share": 0.0}, "above 0"), ({"share": 1.5}, "at most 1"), ({"share": True}, "must be a number")],
)
def test_a_share_is_one_of_a_whole(term, words):
    with pytest.raises(UserError, match=words):
        Objective({"mse": term})
    with pytest.raises(UserError, match="whole batch"):
        Objective({"rate": {"share": 0.5}})
