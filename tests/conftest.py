"""Sizes that build in milliseconds, a small data set and a trainer that leaves nothing behind, shared by all tests."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning
import pytest
import torch
from playwright.sync_api import Browser, Page, sync_playwright
from torch.utils.data import DataLoader, Dataset

from aeic_lightning.models.codec import CodecConfig
from aeic_lightning.models.decoder import DecoderConfig, UNetConfig, VAEConfig

torch.set_num_threads(1)


@pytest.fixture
def codec_config() -> CodecConfig:
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


@pytest.fixture
def decoder_config() -> DecoderConfig:
    """Four resolutions each for the U-Net and the VAE decoder."""
    return DecoderConfig(
        unet=UNetConfig(widths=[8, 16, 16, 16], heads=[1, 2, 2, 2], layers=1, groups=4),
        vae=VAEConfig(widths=[8, 8, 8, 16], layers=0, groups=4),
    )


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


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


@pytest.fixture
def loader():
    """loader(count, batch_size): batches in a fixed order."""
    return lambda count, batch_size=1: DataLoader(SmoothImages(count), batch_size=batch_size)


@pytest.fixture
def trainer(tmp_path):
    """trainer(max_steps, ...): CPU, no logger, no progress bar."""

    def make(max_steps: int, **kwargs) -> lightning.Trainer:
        defaults = {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": -1,
            "max_steps": max_steps,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
        }
        return lightning.Trainer(**defaults | kwargs)

    return make


# As little as possible beside the page itself: no first-run pages, no updates, no traffic of the browser's own.
CHROMIUM_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The system's Chromium, with a profile of its own. `make setup` installs it; a test without it fails."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("no chromium on this machine; install it: apt-get install chromium", pytrace=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def open_page(chromium) -> Iterator[Callable[..., tuple[Page, list[str]]]]:
    """Open a file in Chromium: (page, what went wrong). A desktop by default; `phone=True` has a finger for a mouse.

    The list holds console messages of errors and warnings, uncaught errors, dialogs, and requests that leave the file.
    """
    contexts = []

    def open_(file: Path, phone: bool = False) -> tuple[Page, list[str]]:
        size = {"width": 390, "height": 844} if phone else {"width": 1280, "height": 900}
        contexts.append(chromium.new_context(viewport=size, has_touch=phone, is_mobile=phone))
        page = contexts[-1].new_page()
        problems: list[str] = []
        page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: (problems.append(f"dialog {dialog.message}"), dialog.dismiss()))
        inside = ("file:", "data:", "blob:")
        page.on("request", lambda r: None if r.url.startswith(inside) else problems.append(f"request {r.url}"))
        page.goto(file.resolve().as_uri())
        page.wait_for_selector("html[data-drawn=true]", timeout=60_000)
        return page, problems

    yield open_
    for context in contexts:
        context.close()
