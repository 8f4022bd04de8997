"""Which vLLM to use, and which of its features."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from typing import Any

import msgspec

from enginehouse.client.transport import normal_base_url
from enginehouse.core.errors import ConfigurationError, UnknownNameError

_GROUP_PORT = 51216
_EVERYWHERE = "0.0.0.0"  # noqa: S104 - nothing is bound to it here
# TRL's names, which Tink passed on to it
_RENAMED = {"server_host": "host", "server_port": "port", "connection_timeout": "timeout"}


class VLLMConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where a vLLM runs and how it may be used; each field has a VLLM_… environment variable.

    `base_url` takes precedence over `host` and `port`. `timeout` is how long to wait for the
    server, in seconds. At most `max_loras` adapters are loaded at a time, with ranks up to
    `max_lora_rank`. `group_port` has no effect (see `init_communicator`).
    """

    base_url: str | None = None
    host: str = "localhost"
    port: int = 8000
    group_port: int = _GROUP_PORT
    timeout: float = 5.0
    enable_lora: bool = True
    max_loras: int = 4
    max_lora_rank: int = 64

    def __post_init__(self) -> None:
        if not math.isfinite(self.timeout):
            raise ConfigurationError(f"timeout must be a finite number, got {self.timeout}")

    @staticmethod
    def of(given: VLLMConfig | Mapping[str, Any] | None) -> VLLMConfig:
        """`given`, a configuration made of its fields, or, if None, the environment's.

        Raises ConfigurationError.
        """
        if isinstance(given, VLLMConfig):
            return given
        fields = VLLMConfig.__struct_fields__
        if given is None:
            named = {name: os.environ.get(f"VLLM_{name.upper()}") for name in fields}
            values = {name: value for name, value in named.items() if value}
        else:
            values = dict(given)
        for old, new in _RENAMED.items():
            if old in values:
                _warn(f"{old} is called {new}")
                values.setdefault(new, values.pop(old))
        for name in values:
            if name not in fields:
                raise UnknownNameError("field of VLLMConfig", name, fields)
        try:
            return msgspec.convert(values, VLLMConfig, strict=False)
        except msgspec.ValidationError as error:
            raise ConfigurationError(
                "this is not a configuration of Tink's vLLM client",
                why=str(error),
                fix="correct it, or the VLLM_… environment variable of that name",
            ) from None

    def address(self) -> str:
        """The server's root URL, in normal form. Raises ConfigurationError."""
        if self.group_port != _GROUP_PORT:
            _warn("group_port has no effect: weights go through the disk")
        address = (self.base_url or f"http://{self.host}:{self.port}").strip().rstrip("/")
        if address.endswith("/health"):
            _warn("give only the server's address; /health/ was TRL's, vLLM's own is /health")
            address = address.removesuffix("/health")
        if f"//{_EVERYWHERE}" in address:
            _warn(f"{_EVERYWHERE} is where a server listens, not its address: using 127.0.0.1")
            address = address.replace(f"//{_EVERYWHERE}", "//127.0.0.1")
        return normal_base_url(address)


def _warn(text: str) -> None:
    warnings.warn(f"VLLMConfig: {text}", UserWarning, stacklevel=3)
