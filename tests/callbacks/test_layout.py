import re

import pytest
import yaml
from lightning.pytorch import seed_everything
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups, plugin_data_pb2
from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG
from tiny_system import TinySystem

from aeic_lightning.errors import UserError
from aeic_lightning.study.run_description import run_labels
from callbacks.accuracy import AccuracyMetrics
from callbacks.distribution import PatchFID
from callbacks.layout import CHARTS, FIRST, SHARED, ComparisonLayout, measured
from callbacks.quality import QualityMetrics

QUALITY = {"lpips": [], "dists": []}


def session_groups(logs):
    """What TensorBoard's HParams page shows for a folder of runs: {run: (columns, figures)}."""
    events = EventMultiplexer().AddRunsFromDirectory(str(logs)).Reload()
    context = backend_context.Context(TBContext(data_provider=MultiplexerDataProvider(events, str(logs))))
    request = RequestContext()
    metadata = context.hparams_metadata(request, "")
    experiment = context.experiment_from_metadata(
        request, "", True, metadata, context.hparams_from_data_provider(request, "", limit=100)
    )
    wanted = [api_pb2.ColParams(hparam=info.name) for info in experiment.hparam_infos]
    listing = list_session_groups.Handler(
        request_context=request,
        backend_context=context,
        experiment_id="",
        request=api_pb2.ListSessionGroupsRequest(
            start_index=0, slice_size=10, col_params=wanted, allowed_statuses=api_pb2.Status.values()
        ),
    ).run()
    shown = {}
    for group in listing.session_groups:
        (session,) = group.sessions
        values = {name: value.string_value or value.number_value for name, value in group.hparams.items()}
        assert sorted(values)[: len(FIRST)] == sorted({*FIRST} & {*values}), "TensorBoard ticks the first five"
        columns = {name.removeprefix("setting/"): value for name, value in values.items()}
        figures = {figure.name.tag: figure.value for figure in session.metric_values}
        shown[session.name] = (columns, figures, session.status)
    return shown


def test_columns_hold_the_final_figures_of_fit_and_test(
    system, trainer_of, train_loader, val_loader, tmp_path, run_folder, events
):
    trainer = trainer_of(ComparisonLayout(), QualityMetrics(**QUALITY))
    trainer.fit(system, train_loader, val_loader)
    fitted = {tag: value.item() for tag, value in trainer.callback_metrics.items() if tag.startswith("val/")}
    (tested,) = trainer.test(system, val_loader, verbose=False)
    ((columns, figures, status),) = session_groups(tmp_path).values()
    assert columns == SHARED | {"role": "student", "depth": 1, "lambda": 2.0, "seed": 0}
    assert set(figures) == {
        f"{stage}/{name}" for stage in ("val", "test") for name in ("psnr", "ms_ssim", "bpp", "bpp_estimate")
    }
    assert figures == pytest.approx(fitted | tested, rel=1e-6)
    assert status == api_pb2.STATUS_SUCCESS
    first = events().Scalars("val/psnr")[0].value
    assert figures["val/psnr"] != pytest.approx(first, rel=1e-3)  # a figure that did move since
    assert [path for path in run_folder.iterdir() if path.is_dir()] == []  # no run inside the run


def test_a_study_fills_every_column_of_every_run(trainer_of, val_loader, tmp_path):
    """A teacher without an arm comes first, and its columns are everyone's; the seed is that of the run."""

    class Labelled(TinySystem):
        def __init__(self, columns):
            super().__init__()
            self.columns = columns

        def hparam_columns(self):
            return self.columns

    shared = {"depth": 1, "lambda": 2.0, "beta1": 0.0, "beta2": 0.0, "widths": "8-16"}
    runs = {
        "a_teacher": {"role": "teacher", **shared},
        "depth=1_arm=enc_lambda=2_seed=5": {"role": "distillation", **shared, "beta1": 0.5, "arm": "enc"},
    }
    for name, columns in runs.items():
        seed_everything(5, verbose=False)
        logger = TensorBoardLogger(tmp_path, name="", version=name)
        trainer = trainer_of(ComparisonLayout(), QualityMetrics(**QUALITY), logger=logger)
        trainer.validate(Labelled(columns), val_loader, verbose=False)
    shown = session_groups(tmp_path)
    assert {name: columns for name, (columns, _, _) in shown.items()} == {
        name: SHARED | {"seed": 5} | columns for name, columns in runs.items()
    }


def test_lightnings_placeholder_does_not_take_the_columns(trainer_of, train_loader, val_loader, tmp_path):
    class WithHyperparameters(TinySystem):
        def __init__(self, width=8):
            super().__init__()
            self.save_hyperparameters()  # makes the logger declare hp_metric = -1 before the first step

    trainer = trainer_of(QualityMetrics(**QUALITY), ComparisonLayout())
    trainer.fit(WithHyperparameters(), train_loader, val_loader)
    ((columns, figures, _),) = session_groups(tmp_path).values()
    assert columns["role"] == "student"
    assert figures["val/psnr"] == pytest.approx(trainer.callback_metrics["val/psnr"].item())
    assert "hp_metric" not in figures


def test_the_layout_finds_the_tags(system, trainer_of, train_loader, val_loader, events):
    trainer = trainer_of(ComparisonLayout(), QualityMetrics())
    trainer.fit(system, train_loader, val_loader)
    trainer.test(system, val_loader, verbose=False)
    record = events()
    (written,) = record.Tensors("custom_scalars__config__")  # once, though fit and test were run
    layout = layout_pb2.Layout.FromString(written.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    assert charts == {title: tags for category in CHARTS.values() for title, tags in category.items()}

    def shown(title):
        return {tag for tag in record.Tags()["scalars"] for regex in charts[title] if re.match(regex, tag)}

    assert shown("encoder side") == {"train/distill/encoder/y", "train/distill/encoder/z"}
    assert shown("decoder side") == {"train/distill/decoder/l_0"}
    assert shown("PSNR (dB)") == {"val/psnr", "test/psnr"}
    assert shown("LPIPS") == {"val/lpips_lite0", "test/lpips_lite0"}
    assert shown("bpp_estimate") == {"val/bpp_estimate", "test/bpp_estimate"}
    assert shown("bpp_estimate, training") == {"train/bpp_estimate"}
    assert shown("bpp") == {"val/bpp", "test/bpp"}
    assert shown("total, training") == {"train/loss"}
    assert shown("terms, training") == set()
    players = {
        f"train/{player}{name}" for player in ("", "discriminator_") for name in ("learning_rate", "gradient_norm")
    }
    assert not [tag for tag in players for regex in charts["terms, training"] if re.match(regex, tag)]
    assert {tag for tag in players for regex in charts["learning rate"] if re.match(regex, tag)} == {
        "train/learning_rate", "train/discriminator_learning_rate"
    }  # fmt: skip
    assert re.match(charts["terms, training"][0], "train/discriminator_real")


def test_the_metric_columns_are_what_the_run_measures(trainer_of, val_loader, events, system):
    callbacks = QualityMetrics(ms_ssim=False, lpips=["lite2"], dists=[]), PatchFID(patch_size=32, min_images=3)
    trainer_of(ComparisonLayout(), *callbacks).validate(system, val_loader, verbose=False)
    (written,) = [
        plugin_data_pb2.HParamsPluginData.FromString(content)
        for tag, content in events().PluginTagToContent("hparams").items()
        if tag == EXPERIMENT_TAG
    ]
    columns = {info.name.tag for info in written.experiment.metric_infos}
    names = ("bpp", "bpp_estimate", "psnr", "lpips_lite2", "fid_lite0", "kid_lite0")
    assert columns == {f"{stage}/{name}" for stage in ("val", "test") for name in names}


@pytest.mark.parametrize(
    ("written", "rates"),
    [
        (True, {"bpp", "bpp_estimate"}),
        (False, {"bpp_estimate"}),
        (8, {"bpp_share", "bpp_estimate", "bpp_estimate_share"}),
    ],
)
def test_the_columns_of_rates_are_those_of_the_files_that_are_written(trainer_of, system, written, rates):
    system.write_streams = written
    trainer = trainer_of(AccuracyMetrics())
    assert set(measured(trainer, system)) == {"psnr", "top1", "top5"} | rates


@pytest.mark.parametrize("value", [None, [1, 2]])
def test_a_column_must_be_flat(value, trainer_of, val_loader):
    class Nested(TinySystem):
        def hparam_columns(self):
            return {"beta1": value}

    with pytest.raises(UserError, match="beta1"):
        trainer_of(ComparisonLayout()).validate(Nested(), val_loader, verbose=False)


def test_without_tensorboard_nothing_is_written(system, trainer_of, train_loader, val_loader, run_folder):
    trainer_of(ComparisonLayout(), logger=False).fit(system, train_loader, val_loader)
    assert not run_folder.exists()


def test_columns_are_the_labels_of_the_results(trainer_of, val_loader, tmp_path):
    """From the run's config, by the function that names the run in tables and reports."""

    class Record(SaveConfigCallback):
        def __init__(self, config):
            self.config, self.parser = config, self

        def dump(self, config, **options):
            return yaml.safe_dump(config)

        def setup(self, trainer, pl_module, stage):
            pass

    settings = {"labels": {"arm": "enc", "depth": 3}, "codec": {"depths": [2, 2], "widths": [8, 16]}}
    config = {"model": {"class_path": "a.DistillationSystem", "init_args": settings}}
    seed_everything(5, verbose=False)
    trainer_of(Record(config), ComparisonLayout()).validate(TinySystem(), val_loader, verbose=False)
    ((columns, _, _),) = session_groups(tmp_path).values()
    assert columns == SHARED | run_labels(config, 5) | {"lambda": 2.0}, "what the system adds, labels do not have"
    assert columns["role"] == "distillation"
