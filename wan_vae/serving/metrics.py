"""Counts of requests for Prometheus."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wan_vae.serving.worker import Worker

_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The metrics of one server, in a registry of their own, and those of its process."""

    def __init__(self, worker: Worker) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("wan_vae_requests", "Requests answered.", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "wan_vae_request_seconds",
            "Time from a request's head to the end of its answer.",
            ["path"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        admitted = Gauge(
            "wan_vae_admitted", "Requests that are read, wait, run or are answered.", registry=self.registry
        )
        admitted.set_function(lambda: worker.admitted)


class CountRequests:
    """ASGI middleware that counts the answers of an app's paths, those that were cut off as status 499."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status, whole = time.monotonic(), 500, False

        async def watched(message: Message) -> None:
            nonlocal status, whole
            status = message.get("status", status)
            await send(message)
            whole = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self._app(scope, receive, watched)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, str(status if whole or status == 500 else 499)).inc()
            self._metrics.seconds.labels(path).observe(time.monotonic() - begun)
