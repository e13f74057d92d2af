"""What a server is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Settings:
    """How a server answers; the models are given beside it."""

    host: str = "127.0.0.1"  # where it listens
    key: str | None = None  # that a client must send; None = anyone may ask
    max_queue: int = 64  # requests that may wait; more are told to come again
    max_batch: int = 8  # pictures that are drawn together
    origins: tuple[str, ...] = ()  # other sites whose pages may ask, such as https://example.org
    resize: bool = False  # whether sizes that a model does not draw are scaled to, unless a request says
    log_prompts: bool = False

    @property
    def own_machine(self) -> bool:
        """Whether nobody beyond this machine can connect."""
        return self.host in LOOPBACK
