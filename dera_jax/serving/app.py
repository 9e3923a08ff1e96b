"""The routes: OpenAI's, and this server's own."""

import asyncio
import hmac
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from sse_starlette.sse import AppStatus
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from dera_jax.common.version import __version__
from dera_jax.serving.errors import ApiError
from dera_jax.serving.service import Service

PAGE = Path(__file__).parent / "page" / "index.html"
OPEN = ("/", "/health", "/version", "/metrics")
"""Routes that need no key."""
PATIENCE = 30
"""Seconds that a client has to send its body."""


def make_app(service: Service) -> FastAPI:
    """Returns the application of a service; its engine starts and ends with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI):
        service.engine.start()
        yield
        service.engine.stop()

    # Streams end when their completions do: a server that ends would cut them.
    AppStatus.disable_automatic_graceful_drain()
    # Pages about routes would ask for scripts from elsewhere.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    _add_pages(app, service)
    _add_routes(app, service)
    _add_errors(app, service)
    return app


def _add_pages(app: FastAPI, service: Service) -> None:
    @app.api_route("/", methods=["GET", "HEAD"])
    async def page() -> Response:
        return FileResponse(PAGE, media_type="text/html")

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> Response:
        return Response(status_code=200 if service.engine.is_alive else 503)

    @app.get("/version")
    async def version() -> dict:
        return {"version": __version__}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": service.models()}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict:
        return service.model(name)


def _add_routes(app: FastAPI, service: Service) -> None:
    def post(path: str, answer: Callable) -> None:
        async def route(request: Request):
            return await answer(request, await _body(request, service.config.max_body))

        app.post(path)(route)

    post("/v1/completions", service.completions)
    post("/v1/chat/completions", service.chat)
    post("/v1/score", service.score)
    post("/tokenize", service.tokenize)
    post("/detokenize", service.detokenize)


def _add_errors(app: FastAPI, service: Service) -> None:
    key = service.config.api_key

    @app.middleware("http")
    async def check_key(request: Request, then: Callable):
        # Headers are bytes; as text they are read as Latin-1.
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        right = (
            key and scheme.lower() == "bearer" and hmac.compare_digest(given.encode("latin-1"), key.encode())
        )
        if key is None or request.url.path in OPEN or right:
            return await then(request)
        return answer(ApiError("expected an API key: Authorization: Bearer KEY", 401, code="invalid_api_key"))

    def answer(error: ApiError) -> JSONResponse:
        service.metrics.refused.labels(service.config.name, str(error.status)).inc()
        headers = {"Retry-After": str(error.retry_after)} if error.retry_after else None
        return JSONResponse(error.body(), error.status, headers)

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        told = {404: "there is no such route", 405: "this route has another method"}
        said = told.get(error.status_code, str(error.detail))
        found = answer(ApiError(f"{request.method} {request.url.path[:80]}: {said}", error.status_code))
        found.headers.update(error.headers or {})
        return found

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return answer(ApiError("something went wrong in the server: see its log", 500))


async def _body(request: Request, most: int) -> bytes:
    """Returns the body of a request.

    Raises:
      ApiError: it is no JSON by its type, too large, too slow, or its client has gone away.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(f"expected Content-Type: application/json, found {kind[:60] or 'none'}")
    data = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for chunk in request.stream():
                data += chunk
                if len(data) > most:
                    raise ApiError(f"the body: expected at most {most} bytes", 413)
    except TimeoutError:
        raise ApiError(f"the body: expected all of it within {PATIENCE} s", 408) from None
    except ClientDisconnect:
        raise ApiError("the client has gone away", 499) from None
    return bytes(data)
