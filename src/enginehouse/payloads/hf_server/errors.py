"""What the server answers instead of a completion, in OpenAI's shape and with vLLM's meanings."""

from __future__ import annotations

from typing import Any

_KINDS = {400: "BadRequestError", 401: "AuthenticationError", 404: "NotFoundError"}


class ApiError(Exception):
    """A reply with an error status; `param` names the request's field that is at fault."""

    def __init__(self, status: int, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param

    def body(self) -> dict[str, Any]:
        """The reply's JSON."""
        kind = _KINDS.get(self.status, "InternalServerError")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.status}
        return {"error": error}


def refused(message: str, *, param: str | None = None) -> ApiError:
    """The error for a request that is not right in itself."""
    return ApiError(400, message, param=param)
