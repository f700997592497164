"""The endpoints: diffusers' Hybrid Inference protocol, streams, a page with reports, health and metrics."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fractions import Fraction
from functools import partial
from types import FrameType
from typing import Annotated, Literal

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from wan_vae.config import MODEL_OF_CHANNELS
from wan_vae.errors import UserError, printable
from wan_vae.io.timing import exact_rate
from wan_vae.serving.answer import answer
from wan_vae.serving.limits import Limits, RefusedError, is_authorized, shape_of
from wan_vae.serving.metrics import CountRequests, Metrics
from wan_vae.serving.page import render_page
from wan_vae.serving.work import Scaling, Server
from wan_vae.serving.worker import Worker

_MOST_CONNECTIONS = 512  # far more than requests are admitted; the others find out at once
_PATHS = frozenset({"/", "/decode", "/encode", "/decode/stream", "/encode/stream", "/report", "/healthz", "/metrics"})

Shape = Annotated[list[int] | None, Query()]
Factor = Annotated[float | None, Query(allow_inf_nan=False)]
Rate = Annotated[float | None, Query(gt=0, le=1000)]


def scaling_of(do_scaling: bool = False, scaling_factor: Factor = None, shift_factor: Factor = None) -> Scaling:
    """Read diffusers' parameters of scaling."""
    if scaling_factor == 0:
        raise RefusedError(422, "scaling_factor is 0; leave it out for raw latents.")
    if do_scaling and scaling_factor is None and shift_factor is not None:
        raise RefusedError(
            422,
            f"do_scaling without scaling_factor is for normalized latents, which no shift_factor ({shift_factor}) has.",
        )
    return Scaling(do_scaling, scaling_factor, shift_factor)


ScalingOption = Annotated[Scaling, Depends(scaling_of)]


def make_app(server: Server, worker: Worker, token: str | None = None) -> FastAPI:
    """Return the app of a model and its worker; with a token, all paths but / and /healthz ask for it."""
    limits, config = server.limits, server.model.config
    metrics = Metrics(worker)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        worker.join()

    def authorize(request: Request) -> None:
        if token is not None and not is_authorized(request.headers.get("authorization"), token):
            raise RefusedError(401, "The token is missing or wrong; send it as `Authorization: Bearer TOKEN`.")

    app = FastAPI(title="wan-vae", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(CountRequests, metrics=metrics, paths=_PATHS)
    router = APIRouter(dependencies=[Depends(authorize)])

    @app.exception_handler(UserError)
    async def refuse(request: Request, error: UserError) -> Response:
        status = error.status if isinstance(error, RefusedError) else 422
        headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}.get(status)
        return JSONResponse({"detail": str(error)}, status, headers)

    @app.exception_handler(RequestValidationError)
    async def refuse_parameters(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = first["loc"][1] if len(first["loc"]) > 1 else first["loc"][0]
        hint = "; give it once for each of the five sizes" if name == "shape" else ""
        return JSONResponse({"detail": f"{name} is {printable(first.get('input'))}: {first['msg']}{hint}."}, 422)

    text, policy = render_page(server.name, limits, token=token is not None)

    @app.get("/")
    async def show_page() -> Response:
        headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(text, headers=headers)

    @app.get("/healthz")
    async def healthz() -> dict[str, object]:
        return {"status": "ok", "admitted": worker.admitted, "running": worker.running}

    @router.get("/metrics")
    async def show_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    def rate_of(fps: float | None) -> Fraction:
        usual = 24 if MODEL_OF_CHANNELS.get(config.latent_channels) == "wan2.2" else 16
        return Fraction(usual) if fps is None else exact_rate(fps)

    @router.post("/decode")
    async def decode(
        request: Request,
        scaling: ScalingOption,
        shape: Shape = None,
        dtype: str = "",
        output_type: Literal["pt", "pil", "mp4"] = "pil",
        image_format: Literal["png", "jpg"] = "jpg",
        partial_postprocess: bool = False,
        fps: Rate = None,
    ) -> Response:
        head = shape_of(shape or (), dtype, limits)
        batch, frames, height, width = head.check_latents(config)
        if output_type == "mp4":
            _check_single(batch)
            work = partial(server.decode_mp4, head=head, scaling=scaling, fps=rate_of(fps), media="text/plain")
            return await answer(worker, request, head.bytes, work)
        limits.check_answer(
            batch * 3 * frames * height * width * (1 if partial_postprocess else server.model.decoder_dtype.itemsize),
            "ask for partial_postprocess, for mp4, or a stream",
        )
        kind: Literal["tensor", "unit", "levels", "png", "jpg"] = "levels" if partial_postprocess else "tensor"
        if output_type == "pil":
            kind = image_format if request.headers.get("accept", "").startswith("image/") else "unit"
        if kind in ("png", "jpg") and batch * frames > 1:
            raise RefusedError(
                422, f"These are {batch * frames} pictures; for pil, pass a processor, or ask for pt or mp4."
            )
        return await answer(worker, request, head.bytes, partial(server.decode, head=head, scaling=scaling, kind=kind))

    @router.post("/decode/stream")
    async def decode_stream(
        request: Request, scaling: ScalingOption, shape: Shape = None, dtype: str = "", fps: Rate = None
    ) -> Response:
        head = shape_of(shape or (), dtype, limits)
        _check_single(head.check_latents(config)[0])
        work = partial(server.decode_mp4, head=head, scaling=scaling, fps=rate_of(fps), media="video/mp4")
        return await answer(worker, request, head.bytes, work, streams=True)

    @router.post("/encode")
    async def encode(
        request: Request, scaling: ScalingOption, shape: Shape = None, dtype: str | None = None
    ) -> Response:
        head = None
        if shape is not None or dtype is not None:
            head = shape_of(shape or (), dtype or "", limits)
            head.check_video(config)
        length = None if head is None else head.bytes
        return await answer(worker, request, length, partial(server.encode, head=head, scaling=scaling))

    @router.post("/encode/stream")
    async def encode_stream(request: Request, scaling: ScalingOption) -> Response:
        return await answer(worker, request, None, partial(server.encode_clip, scaling=scaling), streams=True)

    @router.post("/report")
    async def report(request: Request, name: Annotated[str, Query(max_length=255)] = "clip") -> Response:
        return await answer(worker, request, None, partial(server.report, name=name), streams=True)

    app.include_router(router)
    return app


def _check_single(clips: int) -> None:
    if clips != 1:
        raise RefusedError(422, f"An mp4 holds one clip, not {clips}; send them one by one.")


class GracefulServer(uvicorn.Server):
    """At the first signal the running request ends, and those that wait are refused with 503."""

    def __init__(self, config: uvicorn.Config, worker: Worker) -> None:
        super().__init__(config)
        self._worker = worker

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._worker.stop()
        super().handle_exit(sig, frame)


def make_server(server: Server, token: str | None = None) -> GracefulServer:
    """Return a server that `run(sockets=[...])` starts; it ends at SIGINT or SIGTERM."""
    worker = Worker(server.limits)
    config = uvicorn.Config(
        make_app(server, worker, token),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(2 * server.limits.seconds),
        h11_max_incomplete_event_size=2**16,
        limit_concurrency=_MOST_CONNECTIONS,
    )
    return GracefulServer(config, worker)


__all__ = ["Limits", "Server", "make_app", "make_server"]
