"""Pictures of the pages at the width of a desktop and of a phone: `make docs`, then `python -m benchmarks.screens`.

    docs/screens/{site,gallery,serve,results}-{1280,390}.webp
    docs/screens/{codec,board}-{1280,390}.webp     with --codec DIR (of `export --web`) and --board FILE

Names after the command are the pictures to make: `python -m benchmarks.screens codec board --codec ...`.

It needs Chromium (`make browser`) and the extra `dev`.
"""

import argparse
import contextlib
import functools
import http.server
import io
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import skimage.data
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from aeic_lightning.files import write_whole
from aeic_lightning.serve.app import make_app
from aeic_lightning.zoo import names

ROOT = Path(__file__).parents[1]
PHOTO = Path(skimage.data.__file__).with_name("coffee.png")
SIZES = {1280: (1280, 900, False), 390: (390, 844, True)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pictures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.screens", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="of the pictures to make (default: all)")
    parser.add_argument("--site", type=Path, default=ROOT / "build/site", metavar="DIR", help="what `make docs` made")
    parser.add_argument("--codec", type=Path, metavar="DIR", help="what `export --web` made")
    parser.add_argument("--board", type=Path, metavar="FILE", help="a page of `board`")
    args = parser.parse_args(arguments)
    pages = {
        "site": (args.site / "index.html").resolve().as_uri(),
        "gallery": (args.site / "gallery.html").resolve().as_uri(),
        "results": (ROOT / "results/distillation/index.html").as_uri(),
    }
    if args.board:
        pages["board"] = args.board.resolve().as_uri()
    with contextlib.ExitStack() as stack:
        if not args.names or "serve" in args.names:
            pages["serve"] = stack.enter_context(_serving())
        if args.codec:
            pages["codec"] = stack.enter_context(_hosting(args.codec))
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        if unknown := set(args.names) - set(pages):
            parser.error(f"no page {', '.join(sorted(unknown))}; there are {', '.join(pages)}")
        for name in args.names or pages:
            url = pages[name]
            for width in SIZES:
                picture = screen(browser, name, url, width)
                write_whole(ROOT / f"docs/screens/{name}-{width}.webp", picture)
                print(f"docs/screens/{name}-{width}.webp  {len(picture)} bytes", flush=True)
    return 0


def screen(browser: Browser, name: str, url: str, width: int) -> bytes:
    """One page as WebP, after what it shows at first has come."""
    wide, high, phone = SIZES[width]
    context = browser.new_context(viewport={"width": wide, "height": high}, has_touch=phone, is_mobile=phone)
    page = context.new_page()
    page.set_default_timeout(600_000)
    page.goto(url)
    {"serve": _code_a_sample, "results": _to_the_slider, "codec": _code_a_photograph}.get(name, lambda _: None)(page)
    time.sleep(1)
    buffer = io.BytesIO()
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(buffer, "WEBP", quality=60, method=6)
    context.close()
    return buffer.getvalue()


def _code_a_sample(page: Page) -> None:
    page.click("#samples button[title=coffee]")
    page.wait_for_selector("#result[data-done='1']")


def _to_the_slider(page: Page) -> None:
    page.wait_for_selector("html[data-drawn=true]")
    page.evaluate("document.querySelector('.compare').scrollIntoView()")


def _code_a_photograph(page: Page) -> None:
    page.wait_for_selector("html[data-ready=true]")
    page.set_input_files("#photo", PHOTO)
    page.click("#go:enabled")
    page.get_by_text("decoded in").wait_for()


@contextlib.contextmanager
def _serving() -> Iterator[str]:
    """The page of `serve` with the shipped models."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(make_app({name: name for name in names()}), log_level="error"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def _hosting(folder: Path) -> Iterator[str]:
    """A folder of files over HTTP."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


if __name__ == "__main__":
    raise SystemExit(main())
