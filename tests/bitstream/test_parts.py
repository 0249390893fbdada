"""Other entropy models and another g_s than the paper's: in the estimate, in streams, in ONNX, in counts and labels."""

import json
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from bitstream.conftest import MINIATURE

from aeic_lightning.bitstream.exact import exact_mode
from aeic_lightning.bitstream.export import _export_context
from aeic_lightning.bitstream.stream import Bitstream
from aeic_lightning.bitstream.wire import ExportedHalf
from aeic_lightning.checkpoints.checkpoint import load_model
from aeic_lightning.errors import UserError
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import CodecConfig, LatentCodec
from aeic_lightning.models.codec.context import CHECKERBOARD, QUADTREE, grid_mask
from aeic_lightning.models.random_model import random_model, save
from aeic_lightning.study.complexity import codec_costs

CONTEXTS = "aeic_lightning.models.codec.context"
OWN = "models.own_parts"


def part(path: str, **arguments) -> dict:
    return {"class_path": path, "init_args": arguments}


CODECS = {
    "checkerboard": {"context": part(f"{CONTEXTS}.CheckerboardContext", width=24, depth=1)},
    "none": {"context": part(f"{CONTEXTS}.NoContext")},
    "none, by rows": {"context": part(f"{CONTEXTS}.NoContext"), "by_rows": True},
    "own order": {"context": part(f"{OWN}.RowsContext", width=16)},
    "own hyperprior": {
        "h_a": part(f"{OWN}.PlainHyperAnalysis", width=12),
        "h_s": part(f"{OWN}.PlainHyperSynthesis", width=16),
    },
    "own hyperprior, no context": {
        "context": part(f"{CONTEXTS}.NoContext"),
        "h_a": part(f"{OWN}.PlainHyperAnalysis", width=12),
        "h_s": part(f"{OWN}.PlainHyperSynthesis", width=16),
    },
    "narrow hyperprior": {"h_a": part("aeic_lightning.models.codec.transforms.HyperAnalysis", width=8, depth=1)},
    "own g_s": {"g_s": part(f"{OWN}.PlainSynthesis")},
}


@pytest.fixture(scope="module", params=CODECS, ids=str)
def model(request):
    return random_model(replace(MINIATURE, **CODECS[request.param]))


def test_streams_hold_the_latents_and_the_estimate_is_their_size(model, picture):
    """Bits by the tables of what is coded, against the likelihoods that training sees."""
    bitstream = Bitstream(model)
    for seed, size in enumerate([(1, 1), (150, 260)]):
        x = picture(*size, seed)
        sent = bitstream.encode_fully(x)
        decoded = bitstream.decode(sent.data)
        assert torch.equal(decoded.y_hat, sent.y_hat)
        assert torch.equal(decoded.z_hat, sent.z_hat)
    with torch.inference_mode():
        estimate = model.estimate_bits(x).item()
    assert sent.bits == pytest.approx(estimate, rel=0.05)


def test_exact_parts_are_close_to_the_float_ones(model):
    bitstream, codec = Bitstream(model), model.codec
    z_hat = torch.randint(-6, 7, (1, codec.prior.channels, 2, 3), generator=torch.Generator().manual_seed(0)).float()
    with exact_mode():
        phi, expected = bitstream.hyper_synthesis(z_hat), codec.h_s(z_hat)
        assert phi.shape == expected.shape
        assert (phi - expected).std() < 0.03 * expected.std()
        for step, quarters in enumerate(codec.context.pattern):
            coded = grid_mask(quarters, codec.channels, *phi.shape[2:])
            pairs = zip(bitstream.context.params(expected, step), codec.context.params(expected, step), strict=True)
            for ours, theirs in pairs:
                assert (ours - theirs)[coded].std() < 0.04 * theirs[coded].std()


@pytest.mark.parametrize("model", [pytest.param("checkerboard", marks=pytest.mark.slow), "none"], indirect=True)
def test_graph_of_the_context_gives_every_value_to_the_last_bit(model, tmp_path):
    bitstream, phi_channels = Bitstream(model), model.codec.context.phi_channels
    rows, columns = torch.export.Dim("rows", min=1, max=64), torch.export.Dim("columns", min=1, max=64)
    _export_context(bitstream.context, phi_channels, {2: 2 * rows, 3: 2 * columns}, tmp_path / "context.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(tmp_path / "context.onnx", options, providers=["CPUExecutionProvider"])
    ours = bitstream.context
    base = torch.randn(1, phi_channels, 6, 8, generator=torch.Generator().manual_seed(0))
    with exact_mode():
        for step, quarters in enumerate(ours.pattern):
            coded = grid_mask(quarters, model.codec.channels, 6, 8)
            inputs = {"base": base.numpy()} | ({"step": np.array([step])} if len(ours.pattern) > 1 else {})
            for a, b in zip(ours.params(base, step), session.run(None, inputs), strict=True):
                assert torch.equal(a[coded], torch.from_numpy(b)[coded])


def test_checkpoints_and_labels_name_the_parts(model, tmp_path, picture):
    save(model, tmp_path / "model.ckpt")
    again = load_model(tmp_path / "model.ckpt")
    x = picture(64, 64)
    assert Bitstream(again).encode(x) == Bitstream(model).encode(x)
    parts = model.codec.config.parts
    assert {name: str(label).split()[0] for name, label in model.codec.config.labels.items() if name in parts} == {
        name: value["class_path"].rpartition(".")[2] for name, value in parts.items()
    }


def test_the_order_of_coding_is_in_tables_and_fingerprint(tmp_path):
    shared = Bitstream(random_model(MINIATURE)).shared
    assert "pattern" not in shared.to_bytes().decode()  # as in files of before there were others
    other = replace(shared, pattern=CHECKERBOARD)
    assert other.to_bytes() != shared.to_bytes()
    old = {name: value for name, value in shared.to_dict().items() if name not in ("pattern", "multiple", "z_stride")}
    manifest = {"files": {}, "half": "send", "stream_version": 1, "fingerprint": "00", "levels": 0}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for tables, pattern in ((old, QUADTREE), (shared.to_dict(), QUADTREE), (other.to_dict(), CHECKERBOARD)):
        (tmp_path / "tables.json").write_text(json.dumps(tables))
        half = ExportedHalf(tmp_path, "send")
        assert json.dumps(half.pattern) == json.dumps(pattern)
        assert half.sizes(70, 200) == shared.grid.sizes(70, 200)


def test_masks_of_the_checkerboard():
    """The white squares first: where row and column have one parity."""
    first, second = (grid_mask(quarters, 8, 4, 6) for quarters in CHECKERBOARD)
    parity = torch.from_numpy(np.indices((4, 6)).sum(0) % 2 == 0)
    assert torch.equal(first, parity.expand(1, 8, 4, 6))
    assert torch.equal(second, ~first)


def test_a_step_of_the_checkerboard_sees_what_was_coded_before_and_nothing_else():
    context = random_model(replace(MINIATURE, **CODECS["checkerboard"])).codec.context
    phi = torch.randn(1, 32, 4, 4)
    seen = []

    def code(mean, scale, mask):
        seen.append((mean, scale, mask))
        return torch.full_like(mean, 7.0)

    with torch.no_grad():
        y_hat = context(phi, code)
        assert (y_hat == 7).all()
        expected = context.params(torch.where(seen[0][2], torch.tensor(7.0), phi), 1)
    for ours, theirs in zip(seen[1][:2], expected, strict=True):
        assert torch.equal(ours, theirs)


def test_costs_of_a_codec_without_context():
    """Closed form: h_s ends in 2M channels, and the context costs nothing."""
    with torch.device("meta"):
        plain, none = (AEIC(codec, _decoder()) for codec in (MINIATURE, replace(MINIATURE, **CODECS["none"])))
    costs, plain_costs = codec_costs(none), codec_costs(plain)
    assert costs["context"].parameters == costs["context"].macs_per_pixel == 0
    # The last Up of h_s: a 3x3 convolution of 16 channels at stride 64 to four times as many as phi has.
    assert costs["h_s"].macs_per_pixel - plain_costs["h_s"].macs_per_pixel == 9 * 16 * 4 * 32 / 64**2
    assert costs["encode"].macs_per_pixel < plain_costs["encode"].macs_per_pixel


def _decoder():
    return random_model(MINIATURE).decoder.config


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"context": {"class_path": f"{OWN}.TooSmall"}}, "codec.context: .* is no subclass of .*ContextModel"),
        ({"context": part(f"{CONTEXTS}.NoContexts")}, "has no NoContexts"),
        ({"context": part(f"{CONTEXTS}.CheckerboardContext", wide=8)}, "CheckerboardContext.*init_args"),
        ({"h_a": part(f"{OWN}.PlainHyperAnalysis", width=16)}, "z has 8 positions .* give an h_s as well"),
        ({"h_s": part(f"{OWN}.TooSmall")}, r"codec.h_s: TooSmall gives \(1, 32, 8, 8\) .* must give phi"),
        ({"g_s": part(f"{OWN}.TooSmall")}, r"codec.g_s: TooSmall gives \(1, 16, 8, 8\) .* it must give l_T and l_res"),
        ({"context_width": None}, "no context; give context_width"),
    ],
)
def test_parts_that_do_not_fit(changes, expected):
    with pytest.raises(UserError, match=expected):
        LatentCodec(replace(MINIATURE, **changes))


def test_a_layer_without_exact_form_is_refused():
    model = random_model(replace(MINIATURE, h_s=part(f"{OWN}.SquaredUp")))
    with pytest.raises(UserError, match=r"SquaredUp has a forward of its own, other than Sequential's"):
        Bitstream(model)


def test_long_and_short_spelling_of_the_quadtree_are_one_codec():
    width, depth = MINIATURE.context_width, MINIATURE.context_depth
    long = replace(MINIATURE, context=part(f"{CONTEXTS}.QuadtreeContext", width=width, depth=depth))
    torch.manual_seed(0)
    one = LatentCodec(MINIATURE).state_dict()
    torch.manual_seed(0)
    other = LatentCodec(CodecConfig(**vars(long))).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
