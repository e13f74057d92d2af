"""Mistakes as OpenAI's clients read them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from ...command_line import explained

log = logging.getLogger("unclip.server")
# By status: the type, and the code where there is one.
KINDS = {
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "forbidden"),
    404: ("invalid_request_error", "not_found"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "queue_full"),
    503: ("server_error", "shutting_down"),
}
LONGEST = 1000  # characters of a message


class Refused(Exception):
    """A request that is not done: its status, and what the client is told."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers

    @property
    def body(self) -> dict[str, Any]:
        """{"error": ...}."""
        kind, code = KINDS.get(
            self.status, ("server_error" if self.status >= 500 else "invalid_request_error", None)
        )
        message = str(self)[:LONGEST]
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code or code}}

    @property
    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def refusal(error: Exception) -> Refused:
    """Any error as what the client is told; of a defect of ours no more than that it is one."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, ValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        phrase = HTTPStatus(error.status_code).phrase
        return Refused(str(error.detail or phrase), error.status_code, headers=error.headers)
    if isinstance(error, ValueError):
        return Refused(str(error))
    words = explained(error)
    log.error("a request failed", exc_info=error)
    no_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if words is not None and no_memory:
        return Refused("there is not enough memory for this; ask for fewer pictures, or a smaller one", 500)
    return Refused("the server failed; its log says why", 500)


def _invalid(error: ValidationError) -> Refused:
    """The first field that is wrong, by name."""
    first = error.errors(include_url=False, include_context=False)[0]
    param = ".".join(str(part)[:80] for part in first["loc"]) or None
    if first["type"] == "extra_forbidden":
        return Refused(f"Unknown parameter: {param!r:.90}.", param=param, code="unknown_parameter")
    if first["type"] == "missing":
        return Refused(
            f"Missing required parameter: {param!r}.", param=param, code="missing_required_parameter"
        )
    said = first["msg"].removeprefix("Value error, ")
    return Refused(
        f"Invalid value for {param!r}: {said}" if param else said, param=param, code="invalid_value"
    )


async def _told(request: Request, error: Exception) -> JSONResponse:
    return refusal(error).response


def add_to(app: FastAPI) -> None:
    """Every error of every route is answered in this form."""
    for kind in (Refused, HTTPException, ValueError, Exception):
        app.add_exception_handler(kind, _told)
