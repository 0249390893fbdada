"""The web application: one page, the list of models, and one photograph at a time.

It listens on 127.0.0.1 and answers requests for this host alone, and a page of another origin cannot use it.
"""

import threading
from collections.abc import Callable
from functools import lru_cache
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import HTMLResponse
from starlette.concurrency import run_in_threadpool

from aeic_lightning.codec import Codec
from aeic_lightning.errors import UserError
from aeic_lightning.serve.trial import MAX_FILE, trial

HOSTS = ["127.0.0.1", "localhost"]
WAITING = 4
"""Photographs that may wait for their turn, the one that is coded included."""
RATES = (0.02, 0.5)
"""Bits per pixel that may be asked for."""
POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
)


class Turns:
    """One photograph at a time, and few that wait."""

    def __init__(self, most: int) -> None:
        self.places = threading.BoundedSemaphore(most)
        self.turn = threading.Lock()

    def run(self, load: Callable[[str], Codec], name: str, *arguments: Any) -> dict[str, Any]:
        """`trial` with a model, which is loaded and used once it is this one's turn: one at a time.

        Raises HTTPException 503 where too many wait.
        """
        if not self.places.acquire(blocking=False):
            raise HTTPException(503, "other photographs are being coded; try again in a minute")
        try:
            with self.turn:
                return trial(load(name), name, *arguments)
        finally:
            self.places.release()


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
        return {"models": list(models), "rates": RATES, "max_file": MAX_FILE}

    @app.post("/trial")
    async def code(request: Request, model: str, bpp: float) -> dict[str, Any]:
        if model not in models:
            raise HTTPException(404, f"no model {model}; there are {', '.join(models)}")
        if not RATES[0] <= bpp <= RATES[1]:
            raise HTTPException(422, f"the rate is from {RATES[0]} to {RATES[1]} bits per pixel")
        data = b""
        async for chunk in request.stream():
            data += chunk
            if len(data) > MAX_FILE:
                raise HTTPException(413, f"the file is too large: at most {MAX_FILE / 1e6:.0f} MB are taken")
        try:
            return await run_in_threadpool(lambda: turns.run(load, model, data, bpp))
        except UserError as error:
            raise HTTPException(422, str(error)) from error

    return app
