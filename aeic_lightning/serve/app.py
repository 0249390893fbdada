"""The web application: one page, the list of models, and one photograph at a time.

It listens on 127.0.0.1 and answers requests for this host alone, and a page of another origin cannot use it.
"""

import io
import json
import queue
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import FileResponse, HTMLResponse, Response, StreamingResponse
from PIL import Image

from aeic_lightning.bitstream.wire import model_of
from aeic_lightning.codec import Codec
from aeic_lightning.errors import UserError
from aeic_lightning.serve.trial import MAX_FILE, Event, opened, prepare, trial
from aeic_lightning.zoo import earlier_writer
from datamodules.sample_photos import photographs

HOSTS = ["127.0.0.1", "localhost"]
WAITING = 4
"""Photographs that may wait for their turn, the one that is coded included."""
RATES = (0.02, 0.5)
"""Bits per pixel that may be asked for."""
AIM = 0.03
"""Bits per pixel that the page asks for at first."""
POLICY = (
    "default-src 'none'; img-src 'self' data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'"
)


class Turns:
    """One photograph at a time, and few that wait."""

    def __init__(self, most: int) -> None:
        self.places = threading.BoundedSemaphore(most)
        self.turn = threading.Lock()

    def run(self, work: Callable[[], Iterator[Event]]) -> Iterator[Event]:
        """The events of `work`, which starts when its turn has come; a UserError is the event {"error": message}.

        The work goes on in a thread of its own, whether or not somebody listens. Raises HTTPException 503 where too
        many wait.
        """
        if not self.places.acquire(blocking=False):
            raise HTTPException(503, "other photographs are being coded; try again in a minute")
        said: queue.SimpleQueue[Event | None] = queue.SimpleQueue()

        def go() -> None:
            try:
                if self.turn.locked():
                    said.put({"doing": "waiting for the photographs of others"})
                with self.turn:
                    for event in work():
                        said.put(event)
                said.put({"done": True})
            except UserError as error:
                said.put({"error": str(error)})
            finally:
                self.places.release()
                said.put(None)

        threading.Thread(target=go, daemon=True).start()
        return iter(said.get, None)


def make_app(models: dict[str, str], device: str = "cpu") -> FastAPI:
    """The application.

    Args:
        models: what to load (a shipped model, a checkpoint or a folder of weights), by the name that the page shows.
        device: where decoders compute.
    """
    app = FastAPI(title="aeic_lightning", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    turns = Turns(WAITING)
    page = (files("aeic_lightning.serve") / "page.html").read_text()
    samples = photographs()

    @lru_cache(maxsize=len(models))
    def load(name: str) -> Codec:
        return Codec.from_pretrained(models[name], device=device)

    @app.middleware("http")
    async def same_origin(request: Request, call_next: Any) -> Any:
        origin = request.headers.get("origin")
        if origin is not None and origin != f"http://{request.headers.get('host')}":
            return HTMLResponse("this page is for its own machine alone", 403)
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    @app.get("/")
    def index() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/models")
    def list_models() -> dict[str, Any]:
        return {"models": list(models), "rates": RATES, "aim": AIM, "max_file": MAX_FILE, "samples": list(samples)}

    @app.get("/sample/{name}")
    def sample(name: str, small: bool = False) -> Response:
        if name not in samples:
            raise HTTPException(404, f"no sample {name}")
        return Response(_thumbnail(samples[name]), media_type="image/jpeg") if small else FileResponse(samples[name])

    @app.post("/trial")
    async def code(request: Request, model: str, bpp: float) -> StreamingResponse:
        if model not in models:
            raise HTTPException(404, f"no model {model}; there are {', '.join(models)}")
        if not RATES[0] <= bpp <= RATES[1]:
            raise HTTPException(422, f"the rate is from {RATES[0]} to {RATES[1]} bits per pixel")
        data = await _body(request)

        def work() -> Iterator[Event]:
            image = prepare(data)
            yield {"doing": f"{model}: loading"}
            yield from trial(load(model), model, image, bpp)

        return _lines(turns.run(work))

    @app.post("/open")
    async def decode(request: Request) -> StreamingResponse:
        data = await _body(request)

        def work() -> Iterator[Event]:
            writer = model_of(data)
            for name in models:
                yield {"doing": f"{name}: loading"}
                if bytes.fromhex(load(name).fingerprint).startswith(writer):
                    yield from opened(load(name), name, data)
                    return
            offered = ", ".join(models)
            unknown = f"model {writer.hex()} wrote it, none of {offered}; offer it: serve --checkpoint MODEL"
            raise UserError(earlier_writer(writer) or unknown)

        return _lines(turns.run(work))

    return app


async def _body(request: Request) -> bytes:
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_FILE:
            raise HTTPException(413, f"the file is too large: at most {MAX_FILE / 1e6:.0f} MB are taken")
    return data


def _lines(events: Iterator[Event]) -> StreamingResponse:
    return StreamingResponse((json.dumps(event) + "\n" for event in events), media_type="application/x-ndjson")


@lru_cache
def _thumbnail(path: Any) -> bytes:
    buffer = io.BytesIO()
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((192, 128))
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
