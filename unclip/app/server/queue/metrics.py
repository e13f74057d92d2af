"""What a server counts, for Prometheus, each server for itself."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.collectors = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.collectors}  # not the one that a process shares
        self.requests = Counter(
            "unclip_requests", "Requests answered, by path and status", ["path", "status"], **own
        )
        self.waiting = Gauge("unclip_queue_requests", "Requests that wait to be drawn", **own)
        self.batch = Histogram(
            "unclip_batch_pictures", "Pictures of a run of the network", buckets=SIZES, **own
        )
        self.seconds = Histogram(
            "unclip_stage_seconds",
            "Seconds of a batch by stage, of a request in the queue, of making a picture's file",
            ["stage"],
            buckets=SECONDS,
            **own,
        )
        self.pictures = Counter("unclip_pictures", "Pictures drawn", ["model"], **own)
        self.left = Counter("unclip_requests_left", "Requests whose client went away", **own)
