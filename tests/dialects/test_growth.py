"""Reading what a server sends takes linear time, whatever it repeats."""

from __future__ import annotations

import importlib
import json
import pkgutil
from contextlib import suppress

import pytest

import enginehouse.dialects
from enginehouse.core.errors import WireError
from enginehouse.dialects.hosted_errors import HostedErrors
from enginehouse.dialects.server_sent_events import EventParser
from enginehouse.testing.growth import assert_linear

MODULES = [
    importlib.import_module(f"enginehouse.dialects.{module.name}")
    for module in pkgutil.iter_modules(enginehouse.dialects.__path__)
]
READERS = {
    f"{reader.__module__}.{reader.__name__}": reader
    for module in MODULES
    for name, reader in vars(module).items()
    if name.endswith("error_reply")
} | {
    "hosted": HostedErrors(vendor="v", key_variable="K", keys_page="k", billing_page="b"),
}
# fmt: off
MARKERS = [
    "model ", "model does not ", "The model `x` does not exist. ", "adapter ",
    "adapter never been ", "tool choice ", "tool_choice requires ", "requires ",
    "Failed to convert ", " to ", "schema ", "response_format ", "not_found_error ", "not found",
    "max_tokens ", "sequence ", "length ", "a", "context ", "maximum context ", "billing_", "{",
    "[", '"', "\\", "\n", " ", "1",
]
# fmt: on


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(READERS))
@pytest.mark.parametrize("as_json", [True, False])
def test_error_texts(name, as_json):
    """Of any status, as JSON and as plain text, a megabyte of it."""

    def read(text: str) -> None:
        body = json.dumps({"error": {"message": text, "code": 400}}) if as_json else text
        for status in (400, 404, 500):
            with suppress(WireError):
                READERS[name](status, body.encode())

    for marker in MARKERS:
        assert_linear(read, lambda length, m=marker: m * (length // len(m)), longest=1_000_000)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1000, 4096])
def test_events(size):
    """A line that never ends, and one of many."""

    def read(text: str) -> None:
        parser = EventParser()
        data = text.encode()
        for start in range(0, len(data), size):
            parser.feed(data[start : start + size])
        parser.close()

    for marker in ("a", "data: a\n", "data: a\n\n", "\n", ":", "data:", "\r"):
        assert_linear(read, lambda length, m=marker: m * (length // len(m)), longest=8_000_000)
