from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def failures(payload_module: Any) -> Any:
    """The module."""
    return payload_module("inspect_failures")


class PrerequisiteError(Exception):
    """Inspect's: its words are not its arguments."""

    def __init__(self, message: str) -> None:
        self.message = message


class RetryError(Exception):
    """Tenacity's."""

    def __init__(self, inner: Exception) -> None:
        super().__init__("RetryError[<Future at 0x7f>]")
        self.last_attempt: Future[None] = Future()
        self.last_attempt.set_exception(inner)


class ConnectError(Exception):
    """httpx's."""


def failure_of(failures: Any, error: Exception) -> SimpleNamespace:
    """What an exception becomes."""
    with pytest.raises(Exception, match="t") as raised, failures.explained("a/t"):
        raise error
    found: Any = raised.value
    return SimpleNamespace(message=str(found), **found.details)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError("Dataset 'x' is a gated dataset on the Hub."), "gated_data"),
        (RetryError(ConnectError("All connection attempts failed")), "data_unreachable"),
        (OSError("Couldn't reach 'a/b' on the Hub (OfflineModeIsEnabled)"), "data_unreachable"),
        (ModuleNotFoundError("No module named 'swebench'"), "needs_package"),
        (AssertionError("please install the optional SWE-bench dependency"), "needs_package"),
        (PrerequisiteError("[bold]ERROR[/bold]: Docker is not running"), "needs_sandbox"),
        (ValueError('"auto" tool choice requires --enable-auto-tool-choice'), "needs_tools"),
        (KeyError("answer"), "task_failed"),
    ],
)
def test_an_exception_is_a_failure_of_a_kind(failures: Any, error: Exception, kind: str) -> None:
    """By its class, those that it came from, or its words."""
    assert failure_of(failures, error).kind == kind


def test_the_words_are_those_of_the_cause_without_markup(failures: Any) -> None:
    """Nobody is told of a RetryError, or of Rich's tags."""
    retried = failure_of(failures, RetryError(ConnectError("no route")))
    assert retried.why == "ConnectError: no route"
    marked = failure_of(
        failures, PrerequisiteError("[bold]ERROR[/bold]: No [blue]Docker[/blue]\n\nRun it")
    )
    assert marked.why == "No Docker; Run it"


def test_a_failure_passes_as_it_is(failures: Any) -> None:
    """It was explained before."""
    given = failures.sandbox_failure("a/t", "no docker")
    with pytest.raises(type(given)) as raised, failures.explained("a/t"):
        raise given
    assert raised.value is given
