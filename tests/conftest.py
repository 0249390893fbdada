"""Sizes that build in milliseconds, a small data set and a trainer that leaves nothing behind, shared by all tests."""

from __future__ import annotations

import gc
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import lightning
import pytest
import torch
from filelock import FileLock
from torch.utils.data import DataLoader, Dataset

from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import DecoderConfig, UNetConfig, VAEConfig
from tests.forked import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser

torch.set_num_threads(1)

SERVER = pytest.StashKey[Server]()


WAITING = {"test_pages.py", "test_experiments.py", "test_paper_experiments.py"}
"""Files whose tests use what earlier ones of the same file made."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those first, so that one worker gets them all: two would wait for each other, a minute and more."""
    items.sort(key=lambda item: item.path.name not in WAITING)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Before the first test starts a thread, or sets what a new process would not have."""
    gc.freeze()  # what was imported stays: each full collection would look through it
    if any("fork_server" in item.fixturenames for item in session.items if isinstance(item, pytest.Function)):
        session.config.stash[SERVER] = Server()


def pytest_unconfigure(config: pytest.Config) -> None:
    if SERVER in config.stash:
        config.stash[SERVER].end()


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """What the suite costs, whatever else the machine does: ten minutes of two cores are 1,100 of these seconds."""
    if not hasattr(config, "workerinput"):
        usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        seconds = sum(one.ru_utime + one.ru_stime for one in usage)
        terminalreporter.write_line(f"{seconds:.0f} processor seconds, with all processes that have ended")


@pytest.fixture(scope="session")
def fork_server(pytestconfig) -> Server:
    """Starts processes that have everything imported; see `tests/forked.py`."""
    return pytestconfig.stash[SERVER]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """made_once(name, make): the folder of that name, which `make` fills once for all workers of this session."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def get(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = base / "made" / name, base / "made" / f"{name}.done"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not done.exists():
                make(folder)
                done.touch()
        return folder

    return get


@pytest.fixture
def forked(fork_server) -> Iterator[Server]:
    """`fork_server`, and nothing that it has started outlives the test."""
    yield fork_server
    fork_server.kill_what_runs()


def small_codec() -> CodecConfig:
    """Five stages, M = 32: the paper's shape with other numbers."""
    return CodecConfig(
        widths=[8, 8, 16, 16, 32],
        depths=[1, 1, 1, 1, 1],
        context_width=16,
        context_depth=1,
        synthesis_widths=[32, 24, 16],
        synthesis_depths=[1, 1, 1],
        l_T_channels=12,
        l_res_channels=8,
    )


def small_decoder() -> DecoderConfig:
    """Four resolutions each for the U-Net and the VAE decoder."""
    return DecoderConfig(
        unet=UNetConfig(widths=[8, 16, 16, 16], heads=[1, 2, 2, 2], layers=1, groups=4),
        vae=VAEConfig(widths=[8, 8, 8, 16], layers=0, groups=4),
    )


@pytest.fixture(scope="session")
def small_sizes() -> Callable[[], tuple[CodecConfig, DecoderConfig]]:
    """For fixtures of a wider scope: `codec_config` and `decoder_config`, anew at each call."""
    return lambda: (small_codec(), small_decoder())


@pytest.fixture
def codec_config() -> CodecConfig:
    return small_codec()


@pytest.fixture
def decoder_config() -> DecoderConfig:
    return small_decoder()


@pytest.fixture(autouse=True)
def _own_state() -> Iterator[None]:
    """What commands that run in this process set for good is undone: a second thread doubles what later tests cost."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


class SmoothImages(Dataset):
    """`count` fixed colour gradients of `size` x `size` pixels."""

    def __init__(self, count: int, size: int = 128) -> None:
        generator = torch.Generator().manual_seed(0)
        seeds = torch.randn(count, 3, 4, 4, generator=generator)
        self.images = torch.nn.functional.interpolate(seeds, size=(size, size), mode="bicubic").clamp(-1, 1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        return {"image": self.images[index], "name": f"image{index}"}


@pytest.fixture(scope="session")
def loader():
    """loader(count, batch_size): batches in a fixed order."""
    return lambda count, batch_size=1: DataLoader(SmoothImages(count), batch_size=batch_size)


@pytest.fixture
def trainer(tmp_path):
    """trainer(max_steps, ...): CPU, no logger, no progress bar."""
    return lambda max_steps, **kwargs: quiet_trainer(tmp_path, max_steps, **kwargs)


@pytest.fixture(scope="module")
def module_trainer(tmp_path_factory):
    """`trainer` for fixtures of a module."""
    return lambda max_steps, **kwargs: quiet_trainer(tmp_path_factory.mktemp("trainer"), max_steps, **kwargs)


def quiet_trainer(folder: Path, max_steps: int, **kwargs) -> lightning.Trainer:
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": -1,
        "max_steps": max_steps,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return lightning.Trainer(**defaults | kwargs)


# As little as possible beside the page itself: no first-run pages, no updates, no traffic of the browser's own.
CHROMIUM_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The system's Chromium, with a profile of its own. `make setup` installs it; a test without it fails."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("no chromium on this machine; install it: apt-get install chromium", pytrace=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()
