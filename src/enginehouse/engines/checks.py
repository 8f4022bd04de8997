"""Checks of a server's options that several engines share. Each raises and starts nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from enginehouse.core.errors import ConfigurationError
from enginehouse.engines.arguments import Argument
from enginehouse.engines.options import ServerOptions


def is_given(options: ServerOptions, field: str) -> bool:
    """Whether an option says anything: not None, and not a switch that is off anyway."""
    value = getattr(options, field)
    return value is not None and not (field in {"trust_remote_code", "enable_lora"} and not value)


def require_free_variables(options: ServerOptions, reserved: Mapping[str, str]) -> None:
    """Refuse `env_vars` that Enginehouse sets itself; `reserved` says what to do instead."""
    for name in options.env_vars:
        if name in reserved:
            raise ConfigurationError(f"env_vars cannot set {name}", fix=reserved[name])


def require_lora_enabled(options: ServerOptions) -> None:
    """Refuse sizes of adapters without adapters."""
    if not options.enable_lora and (options.max_loras or options.max_lora_rank):
        raise ConfigurationError(
            "max_loras and max_lora_rank do nothing without enable_lora", fix="set enable_lora"
        )


def require_allowed(extra: Iterable[Argument], forbidden: Mapping[str, str]) -> None:
    """Refuse flags in extra_args that Enginehouse sets itself, or that it cannot work with."""
    for argument in extra:
        if fix := forbidden.get(argument.flag):
            raise ConfigurationError(f"extra_args cannot have {argument.flag}", fix=fix)


def require_given_once(options: ServerOptions, argument: Argument, field: str | None) -> None:
    """Refuse a flag in extra_args whose option, `field`, was given, too."""
    if field and is_given(options, field):
        raise ConfigurationError(
            f"{argument.given} in extra_args contradicts the option {field}",
            fix=f"give one of the two; {field} is checked before anything starts",
        )
