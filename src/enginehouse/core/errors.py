"""The one error tree.

EnginehouseError
├── ConfigurationError        a wrong option, key or value: nothing was started
│   ├── UnknownNameError      no engine, task, key … of that name; the nearest is named
│   ├── UntrustedRunError     a run folder from elsewhere that names code to run
│   ├── FlagError             the engine has no such flag (any more)
│   ├── CommandNotFoundError  `run-with`: there is no such program
│   └── NotExecutableError    `run-with`: it is there, but cannot be run
├── ProvisioningError         an engine environment could not be built or does not work
├── ModelError                the model was not found or could not be read
│   ├── ModelNotFoundError
│   ├── ModelGatedError
│   └── AdapterError          not an adapter, or one that does not fit
├── ServerError               a server did not start, died, or could not be stopped
│   ├── StartError
│   ├── PortError
│   ├── StopError
│   ├── ServerGoneError       it stopped answering in the middle of the work
│   └── WeightsError          a swap of weights failed; it says whether the old ones are back
├── WireError                 one request failed
│   ├── ConnectionFailedError         retryable: nothing was received
│   │   └── TlsError                  a certificate, or http in place of https
│   ├── RequestTimeoutError           names what timed out
│   ├── RateLimitedError              retryable after `retry_after` seconds
│   ├── ServerFaultError              5xx
│   ├── EngineKilledError             this request alone ended the engine
│   ├── BadRequestError               4xx: asking again would not help
│   │   ├── UnauthorizedError
│   │   ├── ForbiddenError
│   │   ├── NoCreditError
│   │   ├── UnknownModelError
│   │   └── ContextOverflowError
│   ├── MalformedResponseError        a reply that does not follow the dialect
│   │   └── ReplyTooLargeError        more bytes than any answer has
│   └── UnsupportedError              the engine does not support that; mostly nothing was sent
├── TaskError                 a task's data or scoring is broken
│   ├── DataError
│   └── ScoringError          one answer could not be scored
│       └── ScoringTimeoutError
├── StoreError                a run folder or a file cannot be read or written
│   ├── RunNotFoundError
│   └── RunLockedError
├── TinkerError               the Tinker service refuses a request, or a job of it failed
├── JobError                  a job could not be submitted, watched or cancelled, or it failed
├── GateError                 a run is worse than a policy allows
│   └── GateUndecidedError    too few items to tell
├── ExportError               figures could not be exported
├── HarnessError              another project's harness cannot run a task, or it failed
├── OpenFilesError            this process cannot open any more files
└── NoHeadlineError           too many samples, or all matches, failed: there is no score

`retryable` says whether the same call may succeed unchanged; `stage` says where it happened.
Every class has the exit code of the command line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal, TypedDict, Unpack

_LONGEST = 4000  # characters of a server's message


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None if nothing is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


class Details(TypedDict, total=False):
    """What every error may say beside its message: why, what to do next, and the log's path."""

    why: str | None
    fix: str | None
    log: Path | None


class EnginehouseError(Exception):
    """What happened (`message`), why (`why`), what to do next (`fix`), and the log's path."""

    stage: ClassVar[str] = "enginehouse"
    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        why: str | None = None,
        fix: str | None = None,
        log: Path | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.why = why
        self.fix = fix
        self.log = log

    def __str__(self) -> str:
        lines = [self.message]
        if self.why:
            lines.append(f"  why:  {self.why}")
        if evidence := getattr(self, "evidence", None):
            lines.append(f"  seen: {evidence}")
        if self.fix:
            lines.append(f"  next: {self.fix}")
        if self.log:
            lines.append(f"  log:  {self.log}")
        return "\n".join(lines)


class ConfigurationError(EnginehouseError):
    """A wrong option, key or value; raised before anything is started."""

    stage = "configuration"
    exit_code = 2


class UnknownNameError(ConfigurationError):
    """There is nothing of that name; the message lists the known names."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = nearest(name, names)
        super().__init__(
            f"there is no {kind} called {name!r}",
            fix=(f"did you mean {close!r}? " if close else "")
            + (f"known: {', '.join(names)}" if names else f"there is no {kind} at all yet"),
        )
        self.kind = kind
        self.name = name
        self.known = tuple(names)


class UntrustedRunError(ConfigurationError):
    """A run folder from elsewhere names code to run, and the user has not allowed it."""


class FlagError(ConfigurationError):
    """The installed engine does not know a flag, or no longer does."""


class CommandNotFoundError(ConfigurationError):
    """The program that `run-with` is to run was not found; a shell's exit code for that."""

    exit_code = 127


class NotExecutableError(ConfigurationError):
    """The program that `run-with` is to run is not executable; a shell's exit code for that."""

    exit_code = 126


class ProvisioningError(EnginehouseError):
    """An engine environment could not be built, or does not work."""

    stage = "provision"
    exit_code = 3


class ModelError(EnginehouseError):
    """The model was not found or could not be read."""

    stage = "model"
    exit_code = 4


class ModelNotFoundError(ModelError):
    """The model is neither on the hub nor on the disk."""


class ModelGatedError(ModelError):
    """The hub does not give this model to this token."""


class AdapterError(ModelError):
    """This is not an adapter, or it does not fit the model or the server."""


class NoEffectError(AdapterError):
    """A loaded adapter changes nothing that can be told from noise."""


class ServerError(EnginehouseError):
    """A server did not start, died, or could not be stopped.

    `kind` names the diagnosis where there is one ("out_of_memory" …); `evidence` is its line of
    the engine's log.
    """

    stage = "start"
    exit_code = 5

    def __init__(
        self,
        message: str,
        *,
        kind: str | None = None,
        evidence: str | None = None,
        **details: Unpack[Details],
    ) -> None:
        super().__init__(message, **details)
        self.kind = kind
        self.evidence = evidence


class StartError(ServerError):
    """The server did not become ready."""


class PortError(ServerError):
    """The port is taken, or none is free."""


class StopError(ServerError):
    """A process of the server is still alive."""


class ServerGoneError(ServerError):
    """The server stopped answering; nothing more can be asked of it."""

    stage = "wire"


class WeightsError(ServerError):
    """A swap of weights failed. `restored`: the server answers with its old ones again."""

    stage = "weights"

    def __init__(
        self,
        message: str,
        *,
        kind: str | None = None,
        evidence: str | None = None,
        restored: bool = True,
        **details: Unpack[Details],
    ) -> None:
        super().__init__(message, kind=kind, evidence=evidence, **details)
        self.restored = restored


class WireError(EnginehouseError):
    """One request failed.

    A server's message can have any length and ends up in journals: `message` and `why` are cut to
    4,000 characters each. `body` is an error reply as it came, empty where there was none.
    """

    stage = "wire"
    exit_code = 6
    body: bytes = b""

    def __init__(
        self,
        message: str,
        *,
        why: str | None = None,
        fix: str | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(_shortened(message), why=why and _shortened(why), fix=fix)
        self.status = status


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]} … ({len(text):,} characters in all)"


class ConnectionFailedError(WireError):
    """The connection was refused, or broke before the first byte of the reply."""

    retryable = True


class TlsError(ConnectionFailedError):
    """The TLS handshake failed: the certificate, or http instead of https, or the reverse."""

    retryable = False


class RequestTimeoutError(WireError):
    """Connecting, the first byte, or the whole request took too long; the message says which."""


class RateLimitedError(WireError):
    """429, or 503 with Retry-After. `retry_after` is in seconds, None if the server gave none."""

    retryable = True

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        status: int | None = None,
        why: str | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(message, why=why, fix=fix, status=status)
        self.retry_after = retry_after


class ServerFaultError(WireError):
    """The server answered 5xx."""

    retryable = True


class EngineKilledError(WireError):
    """The request alone crashed the engine twice; asking again would crash it again."""

    stage = "engine"


class BadRequestError(WireError):
    """The server refused the request; asking again would not help."""


class UnauthorizedError(BadRequestError):
    """401, or 403 from a server with a single key."""


class ForbiddenError(BadRequestError):
    """403 from a hosted API: the key is valid but not allowed to do this."""


class NoCreditError(BadRequestError):
    """The account behind the key has no credit left."""


class UnknownModelError(BadRequestError):
    """The server does not serve a model of that name."""


class ContextOverflowError(BadRequestError):
    """Prompt and max_tokens do not fit the model's context."""


class MalformedResponseError(WireError):
    """The reply does not follow the dialect."""


class ReplyTooLargeError(MalformedResponseError):
    """The reply is larger than any answer; the rest of it was not read."""


class UnsupportedError(WireError):
    """The engine does not support that: it said so, or nothing was sent."""


class TaskError(EnginehouseError):
    """A task's definition or scoring is broken."""

    stage = "task"
    exit_code = 7


class DataError(TaskError):
    """A task's data is missing, unreadable or not what the task expects."""


class ScoringError(TaskError):
    """An answer could not be scored: the scoring code raised, died, or returned nonsense.

    In an evaluation this is the outcome `unscored` of one sample; it is not raised.
    """


class ScoringTimeoutError(ScoringError):
    """Scoring an answer exceeded its time limit."""


class StoreError(EnginehouseError):
    """A run folder, or another file, cannot be read or written."""

    stage = "store"
    exit_code = 8


class RunNotFoundError(StoreError):
    """There is no such run."""


class RunLockedError(StoreError):
    """Another process is working on the run."""


class HarnessError(EnginehouseError):
    """Another project's harness cannot run a task, or it failed.

    `kind` says why, where that is known: "unknown_task", "gated_data", "needs_logprobs", "ended" …
    """

    stage = "harness"
    exit_code = 14

    def __init__(
        self, message: str, *, kind: str | None = None, **details: Unpack[Details]
    ) -> None:
        super().__init__(message, **details)
        self.kind = kind


class OpenFilesError(EnginehouseError):
    """This process, or the machine, cannot open any more files; no server is to blame."""

    stage = "machine"
    exit_code = 8


class NoHeadlineError(EnginehouseError):
    """Too many samples, or all matches, failed for a meaningful figure; the run is complete."""

    stage = "evaluation"
    exit_code = 9


class TinkerError(EnginehouseError):
    """The Tinker service refuses a request, or a job that it had accepted failed.

    `category` says whose mistake it is: "user" or "server". `status` is the HTTP status where the
    request itself is refused; a job that fails is answered with 200 and {error, category}.
    """

    stage = "tinker"
    exit_code = 6

    def __init__(
        self,
        message: str,
        *,
        category: Literal["user", "server"] = "user",
        status: int = 400,
        **details: Unpack[Details],
    ) -> None:
        super().__init__(message, **details)
        self.category = category
        self.status = status


class JobError(EnginehouseError):
    """A job could not be submitted, watched, fetched or cancelled, or it failed.

    `kind` is the executor's word where there is one ("unknown_partition", "unreachable" …).
    """

    stage = "job"
    exit_code = 10

    def __init__(
        self, message: str, *, kind: str | None = None, **details: Unpack[Details]
    ) -> None:
        super().__init__(message, **details)
        self.kind = kind


class GateError(EnginehouseError):
    """A metric is worse than a policy allows."""

    stage = "gate"
    exit_code = 11


class GateUndecidedError(GateError):
    """No metric is shown to be worse than a policy allows, but there are too few items to tell."""

    exit_code = 12


class ExportError(EnginehouseError):
    """Figures could not be exported; the run is as it was.

    `kind` says why: "missing_package", "refused", "unreadable" …
    """

    stage = "export"
    exit_code = 13

    def __init__(
        self, message: str, *, kind: str | None = None, **details: Unpack[Details]
    ) -> None:
        super().__init__(message, **details)
        self.kind = kind
