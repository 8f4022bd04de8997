"""vLLM's error replies, word for word where the client reads them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class ApiError(Exception):
    """A refusal; `body()` is the JSON that vLLM sends with `status`."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "BadRequestError",
        parameter: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.kind = kind
        self.parameter = parameter

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.parameter,
                "code": self.status,
            }
        }


def bad_value(message: str, parameter: str, value: object) -> ApiError:
    """A value out of range."""
    return ApiError(f"{message} (parameter={parameter}, value={value})", parameter=parameter)


def unknown_model(name: str, known: Iterable[str]) -> ApiError:
    """A name that is not served."""
    return ApiError(
        f"The model `{name}` does not exist. Valid aliases: {', '.join(known)}.",
        status=404,
        kind="NotFoundError",
        parameter="model",
    )


def prompt_too_long(tokens: int, limit: int, *, counted: str = "") -> ApiError:
    """A prompt that leaves no room for an answer."""
    return bad_value(
        f"This model's maximum context length is {limit} tokens. However, your prompt contains "
        f"{counted}{tokens} input tokens, which exceeds this limit even without any output tokens. "
        "Please reduce the length of the input prompt.",
        "input_tokens",
        tokens,
    )


def invalid_body(message: str) -> ApiError:
    """JSON that is none, lacks a field, or has one of a wrong type."""
    return ApiError(f"1 validation error:\n  {message}", kind="Bad Request", parameter="body")
