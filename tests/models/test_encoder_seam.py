"""An encoder that the package has never seen, on every way that an encoder takes."""

from dataclasses import asdict, replace

import pytest
import torch
import yaml
from PIL import Image

from aeic_lightning import cli
from aeic_lightning.bitstream.sender import Sender
from aeic_lightning.bitstream.stream import Bitstream
from aeic_lightning.checkpoints.checkpoint import load_model
from aeic_lightning.cli.commands import bench
from aeic_lightning.errors import UserError
from aeic_lightning.models.aeic import AEIC
from aeic_lightning.models.codec import CodecConfig, LatentCodec
from aeic_lightning.models.layers import StarEncoder
from aeic_lightning.models.parts import find_reach
from aeic_lightning.models.random_model import random_model, save
from aeic_lightning.study.complexity import codec_costs
from aeic_lightning.study.run_description import encoder_costs, run_labels
from tests.bitstream.forked_worker import fork_workers
from tests.models.plain_encoder import AttentiveEncoder, PlainEncoder, PooledEncoder, PositionedEncoder

HERE = "tests.models.plain_encoder"


def named(name: str, **arguments) -> dict:
    return {"class_path": f"{HERE}.{name}", "init_args": arguments}


@pytest.fixture
def plain(codec_config) -> CodecConfig:
    return replace(codec_config, encoder=named("PlainEncoder", width=16))


@pytest.fixture
def picture() -> torch.Tensor:
    down, right = torch.linspace(-4, 4, 100)[:, None], torch.linspace(-4, 4, 150)[None]
    return torch.stack([(down + right).sin(), (down * 2 - right).cos(), (down * right).sin()])[None]


# ---------------------------------------------------------------------- the config


def test_the_codec_follows_the_encoder(plain):
    codec = LatentCodec(plain)
    assert type(codec.g_a) is PlainEncoder
    assert (codec.channels, codec.stride) == (32, 32)
    assert (plain.widths, plain.depths, plain.channels) == (None, None, 32)
    assert codec(torch.zeros(1, 3, 70, 130)).y.shape == (1, 32, 4, 6)


@pytest.mark.parametrize("stages", [3, 4, 6])
def test_other_strides(codec_config, picture, stages):
    """From the image to bytes and back, at the strides 8, 16 and 64."""
    widths = [32, 24, 16, 16][: stages - 2]
    encoder = named("PlainEncoder", width=8, channels=16, stages=stages)
    config = replace(codec_config, encoder=encoder, synthesis_widths=widths, synthesis_depths=[1] * len(widths))
    model = random_model(config)
    assert model.codec.stride == 2**stages
    bitstream = Bitstream(model)
    sent = bitstream.encode_fully(picture)
    assert torch.equal(bitstream.decode(sent.data).y_hat, sent.y_hat)
    assert model(picture).x_hat.shape == picture.shape


def test_an_encoder_keeps_its_own_initial_weights(plain):
    torch.manual_seed(3)
    alone = PlainEncoder(width=16)
    torch.manual_seed(3)
    assert torch.equal(LatentCodec(plain).g_a.last.weight, alone.last.weight)


def test_star_by_class_path_is_the_short_spelling(codec_config):
    star = {"widths": [8, 8, 16, 16, 32], "depths": [1, 1, 1, 1, 1]}
    path = "aeic_lightning.models.encoders.star.StarEncoder"
    config = replace(codec_config, encoder={"class_path": path, "init_args": star})
    assert config == codec_config
    assert type(LatentCodec(config).g_a) is StarEncoder


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ({"class_path": "my_pkg.MyEncoder"}, "my_pkg.MyEncoder cannot be imported .* put it on PYTHONPATH"),
        ({"class_path": f"{HERE}.Missing"}, "has no Missing"),
        ({"class_path": "MyEncoder"}, "names no module"),
        ({"class": "MyEncoder"}, "write {class_path"),
        ({"class_path": "os.getcwd"}, "is no subclass of torch.nn.Module"),
        (named("PlainEncoder"), "missing a required argument: 'width'"),
        (named("PlainEncoder", width=8, depth=3), "unexpected keyword argument 'depth'"),
        (named("PlainEncoder", width="wide"), "PlainEncoder cannot be built"),
        ({"class_path": "torch.nn.Linear", "init_args": {"in_features": 3, "out_features": 3}}, "fails on an image"),
        ({"class_path": "torch.nn.Flatten"}, r"gives \(1, 196608\).* it must give y"),
        (named("PlainEncoder", width=8, channels=20), "gives 20 channels, but M must be a multiple of 8"),
        (named("PlainEncoder", width=8, stages=2), "stride is 4, but must be 8 times a power of two"),
        (named("PlainEncoder", width=8, stages=4), "stride 16 and 3 widths of g_s .* g_s needs 2 widths"),
    ],
)
def test_what_is_no_encoder_is_said_in_one_line(codec_config, encoder, message):
    with pytest.raises(UserError, match=message) as caught:
        LatentCodec(replace(codec_config, encoder=encoder))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_whose_encoder_is_gone_says_so(plain, tmp_path):
    save(random_model(plain), tmp_path / "a.ckpt")
    assert type(load_model(tmp_path / "a.ckpt").codec.g_a) is PlainEncoder
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    checkpoint["model_config"]["codec"]["encoder"]["class_path"] = "my_pkg.MyEncoder"
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"a\.ckpt was trained with .* my_pkg\.MyEncoder cannot be imported"):
        load_model(tmp_path / "a.ckpt")


# ---------------------------------------------------------------------- the sender


def test_quick_and_plain_forms_give_the_same_symbols(codec_config, picture, monkeypatch):
    model = random_model(codec_config)
    bitstream = Bitstream(model)
    assert bitstream.sender.is_quick
    monkeypatch.setattr("aeic_lightning.bitstream.sender._is_quick", lambda g_a: False)
    plain = Bitstream(model)
    assert not plain.sender.is_quick
    assert plain.encode(picture) == bitstream.encode(picture)


def test_a_derived_block_takes_the_plain_path(codec_config):
    class Doubled(StarEncoder):
        def forward(self, x):
            return 2 * super().forward(x)

    codec = random_model(codec_config).codec
    assert Sender(codec).is_quick
    codec.g_a.__class__ = Doubled
    assert not Sender(codec).is_quick


@pytest.mark.parametrize(
    ("encoder", "reach"),
    [
        (PlainEncoder(8), 32),  # 1 + 2 + 4 + 8 + 16 = 31 rows
        (PlainEncoder(8, stages=3), 8),
        (torch.nn.Conv2d(3, 16, 32, stride=32), 0),
        (StarEncoder([8, 8, 16, 16, 32], [1, 1, 1, 1, 1]), 352),  # 31 + 5 * (2 + 4 + 8 + 16 + 32) = 341 rows
        (PooledEncoder(8), None),
        (PositionedEncoder(8), None),
        (AttentiveEncoder(), None),
    ],
)
def test_reach_is_found(encoder, reach):
    """A StarBlock's last weights are zero at first; what they would let through counts all the same."""
    stride = 256 // encoder.eval()(torch.zeros(1, 3, 256, 256)).shape[2]
    assert find_reach(encoder, stride) == reach


@pytest.mark.parametrize("name", ["PlainEncoder", "PooledEncoder", "PositionedEncoder"])
def test_bands_give_what_the_whole_image_gives(codec_config, monkeypatch, name):
    codec = random_model(replace(codec_config, encoder=named(name, width=8))).codec
    x = torch.rand(1, 3, 1100, 70) * 2 - 1
    with torch.inference_mode():
        y = codec.g_a(codec.pad(x))
    monkeypatch.setattr("aeic_lightning.bitstream.sender.BAND_PIXELS", 1)
    sender = Sender(codec)
    assert (sender.halo is None) == (name != "PlainEncoder")
    seen = []
    analyse = sender._analyse
    monkeypatch.setattr(sender, "_analyse", lambda x: seen.append(x.shape) or analyse(x))
    assert (sender(x)[0] - y).abs().max() < 1e-4
    assert (len(seen) > 5) == (name == "PlainEncoder")


def test_fast_leaves_an_unknown_encoder_in_float32(plain, picture):
    codec = random_model(plain).codec
    assert torch.equal(Sender(codec, fast=True)(picture)[0], Sender(codec)(picture)[0])


# ---------------------------------------------------------------------- costs and labels


def test_complexity_counts_an_unknown_encoder(plain, codec_config, decoder_config):
    with torch.device("meta"):
        costs = codec_costs(AEIC(plain, decoder_config))
    expected = 9 * sum(a * b / 4**stage for stage, a, b in zip(range(1, 6), [3, 16, 16, 16, 16], [16, 16, 16, 16, 32],
                                                               strict=True))  # fmt: skip
    assert costs["g_a"].macs_per_pixel == pytest.approx(expected)
    assert costs["g_a"].parameters == sum(p.numel() for p in PlainEncoder(16).parameters())
    with torch.device("meta"):
        model = AEIC(replace(codec_config, encoder=named("AttentiveEncoder")), decoder_config)
    tokens = 32 * 32
    per_token = 3 * 32**3 + 4 * 32**2 + 2 * 32 * 64 + 2 * tokens * 32  # patches, projections, MLP, attention
    assert codec_costs(model)["g_a"].macs_per_pixel == pytest.approx(per_token / 32**2)


def test_labels_are_the_class_and_its_arguments(plain, codec_config):
    label = {"encoder": "PlainEncoder width=16"}
    assert plain.labels == label
    assert codec_config.labels == {"depth": 1, "widths": "8-8-16-16-32"}
    assert replace(codec_config, depths=[1, 1, 2, 2, 2]).labels["depth"] == "1-1-2-2-2"
    # LightningCLI writes the defaults of widths and depths into a run's config beside the encoder.
    codec = asdict(CodecConfig()) | {"encoder": plain.encoder}
    config = {"model": {"class_path": "x.TeacherSystem", "init_args": {"codec": codec}}}
    assert run_labels(config, None) == {"role": "teacher"} | label


def test_results_can_be_read_where_their_encoder_is_not(plain, decoder_config):
    settings = {"codec": asdict(plain), "decoder": asdict(decoder_config)}
    config = {"model": {"init_args": settings}}
    assert encoder_costs(config)["encoder_parameters"]["g_a"] == sum(p.numel() for p in PlainEncoder(16).parameters())
    settings["codec"]["encoder"]["class_path"] = "my_pkg.MyEncoder"
    assert encoder_costs(config) is None


# ---------------------------------------------------------------------- the commands


def test_train_and_code_by_the_commands(plain, decoder_config, tmp_path, capsys, forked, monkeypatch):
    """Two steps through `fit`, then every command that takes the checkpoint or the config."""
    for number in range(2):
        waves = torch.arange(160 * 192).reshape(160, 192) % (97 + number)
        Image.fromarray((waves[..., None].repeat(1, 1, 3) * 2).byte().numpy()).save(tmp_path / f"{number}.png")
    photos = {"train_dir": str(tmp_path), "crop_size": 128, "batch_size": 1}
    sizes = {key: value for key, value in asdict(plain).items() if value is not None}
    objective = {"rate": 1.0, "mse": 2.0}
    config = {
        "seed_everything": 0,
        "model": {
            "class_path": "aeic_lightning.systems.TeacherSystem",
            "init_args": {"codec": sizes, "decoder": asdict(decoder_config), "objective": objective,
                          "optimization": {}},
        },
        "data": {"class_path": "datamodules.ImageFolder", "init_args": photos},
        "trainer": {
            "accelerator": "cpu", "devices": 1, "max_steps": 2, "logger": False, "enable_progress_bar": False,
            "default_root_dir": str(tmp_path / "run"), "num_sanity_val_steps": 0, "limit_val_batches": 0,
            "use_distributed_sampler": False,
            "callbacks": [{"class_path": "callbacks.checkpoint.LastCheckpoint", "init_args": {"every_n_steps": 2}}],
        },
    }  # fmt: skip
    file = tmp_path / "plain.yaml"
    file.write_text(yaml.safe_dump(config))
    width = "--model.init_args.codec.encoder.init_args.width=8"  # as a sweep sets it
    assert cli.main(["fit", "--config", str(file), width]) == 0
    checkpoint = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    model = load_model(checkpoint)
    assert model.codec.g_a.last.in_channels == 8
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert run_labels(saved, 0)["encoder"] == "PlainEncoder width=8"

    for command in (["complexity"], ["plan"]):
        assert cli.main([*command, "--config", str(file)]) == 0
    out = str(tmp_path / "out")
    photo, stream = str(tmp_path / "0.png"), str(tmp_path / "out" / "0.aeic")
    assert cli.main(["compress", photo, "--checkpoint", checkpoint, "-o", out]) == 0
    assert cli.main(["decompress", stream, "--checkpoint", checkpoint, "-o", out]) == 0
    assert Image.open(tmp_path / "out" / "0.png").size == (192, 160)
    settings = "1 thread,fast sender"
    fork_workers(forked, monkeypatch)
    assert cli.main(["verify", photo, "--checkpoint", checkpoint, "--settings", settings]) == 0
    monkeypatch.setattr(bench, "peak_of", lambda args, half, height, width: bench.peak(args, half, (height, width)))
    words = ["bench", "--checkpoint", checkpoint, "--encode-only", "--sizes", "64x64", "--repeats", "1"]
    words += ["--threads", "1"]
    assert cli.main(words) == 0
    assert "peak memory" in capsys.readouterr().out
