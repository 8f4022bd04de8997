"""The environment variables of a job, as a launch file gives them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from enginehouse.core.errors import ConfigurationError
from enginehouse.jobs.base import Environment

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LONG_TOKEN = re.compile(  # certain enough to be looked for anywhere in a text
    r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|nvapi-[A-Za-z0-9_-]{20,}"
    r"|gh[pousr]_[A-Za-z0-9]{20,}|glpat-[A-Za-z0-9_-]{16,}|AKIA[A-Z0-9]{16})"
)
_TOKEN = re.compile(r"(hf_|sk-|nvapi-|gh[pousr]_|glpat-)\S{4,}")
_SECRET_NAME = re.compile(
    r"(^|_)(TOKENS?|(API)?_?KEYS?|SECRETS?|PASS|PASSWORDS?|PASSWD|PASSPHRASES?|CREDENTIALS?|AUTH)"
    r"(_FOR_\w+)?$",
    re.IGNORECASE,
)
_PASSWORD = re.compile(r"://[^\s/:@]*:[^\s/@$]+@")  # of an address; $ begins a variable's name
_ASSIGNED = re.compile(r"(?<![\w-])([A-Za-z_]\w*)=[\"']?[^\s\"'$`]")
_SECRET_FLAG = re.compile(
    r"(?<![\w-])--(?:api[-_]key|(?:hf|auth|access)[-_]token|token|password|secret)"
    r"(?:=|\s+)[\"']?[^\s\"'$`-]"
)
_HERE = re.compile(r"^\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?$")
_NAME_LIKE = re.compile(r"\A[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name is one whose value is not shown."""
    return _SECRET_NAME.search(name) is not None


def holds_token(text: str) -> bool:
    """Whether somewhere in a text is a token of a hub or an API, or an address with a password."""
    return _LONG_TOKEN.search(text) is not None or _PASSWORD.search(text) is not None


def assigns_secret(script: str) -> bool:
    """Whether lines of shell give a secret's variable or flag a value that they contain."""
    if _SECRET_FLAG.search(script):
        return True
    return any(is_secret_name(match[1]) for match in _ASSIGNED.finditer(script))


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One variable of a job, and where its value comes from: exactly one of the three.

    `literal` was written in the file, `host` is a variable here that is read at submission, and
    `machine` is one of the machine where the job runs. A value from `host` is a secret, and so is
    a `literal` that looks like one.
    """

    name: str
    literal: str | None = field(default=None, repr=False)
    host: str | None = None
    machine: str | None = None

    @property
    def secret(self) -> bool:
        """Whether the value may be written nowhere."""
        if self.literal is None:
            return self.host is not None
        named_so = is_secret_name(self.name) and bool(self.literal)
        return named_so or holds_token(self.literal) or bool(_TOKEN.fullmatch(self.literal))

    @property
    def source(self) -> str:
        """Where the value comes from, without the value of a secret."""
        if self.host is not None:
            return f"host:{self.host}"
        if self.machine is not None:
            return f"runtime:{self.machine}"
        return "a literal (not shown)" if self.secret else f"lit:{self.literal}"


def parse_variable(name: str, value: str, *, here: Mapping[str, str]) -> Variable:
    """A variable from its text: `lit:VALUE`, `host:NAME`, `runtime:NAME`, or a plain value.

    A plain value is a literal, unless it is the name of a variable in `here`, the environment of
    this process, or a secret is given what looks like one: older files write
    `HF_TOKEN: MY_HF_TOKEN`, or `$MY_HF_TOKEN`. Raises ConfigurationError for what is not a name.
    """
    value = _HERE.sub(r"host:\1", value)
    kind, separator, rest = value.partition(":")
    if not separator or kind not in ("lit", "host", "runtime"):
        kind, rest = "host" if _names_variable(name, value, here) else "lit", value
    for text in (name, *([rest] if kind != "lit" else [])):
        if not _NAME.fullmatch(text):
            raise ConfigurationError(
                f"{text!r} is not the name of an environment variable",
                fix="a name has letters, digits and underscores, and does not start with a digit",
            )
    if kind == "lit":
        return Variable(name=name, literal=rest)
    return Variable(name=name, host=rest) if kind == "host" else Variable(name=name, machine=rest)


def _names_variable(name: str, value: str, here: Mapping[str, str]) -> bool:
    if _NAME.fullmatch(value) is None:
        return False
    return value in here or (is_secret_name(name) and _NAME_LIKE.fullmatch(value) is not None)


@dataclass(frozen=True, kw_only=True)
class Variables:
    """The variables of one process, by name."""

    by_name: Mapping[str, Variable] = field(default_factory=dict)

    def with_others(self, others: Variables) -> Variables:
        """These and others; one of `others` replaces one of the same name."""
        return Variables(by_name={**self.by_name, **others.by_name})

    def environment(self) -> Environment:
        """The variables as an executor takes them, without the values of secrets."""
        variables = self.by_name.values()
        return Environment(
            values={v.name: v.literal for v in variables if v.literal is not None and not v.secret},
            secrets=frozenset(v.name for v in variables if v.secret),
            from_machine={v.name: v.machine for v in variables if v.machine is not None},
        )

    def secret_values(self, here: Mapping[str, str]) -> dict[str, str]:
        """The values of the secrets. Raises ConfigurationError naming all that are not set here."""
        secrets = [variable for variable in self.by_name.values() if variable.secret]
        missing = sorted({v.host for v in secrets if v.host is not None and v.host not in here})
        if missing:
            raise ConfigurationError(
                f"not set in this environment: {', '.join(missing)}",
                why="the launch file passes them to the job (host:NAME)",
                fix="export them first, or remove them from env_vars",
            )
        return {v.name: here[v.host] if v.host is not None else str(v.literal) for v in secrets}
