"""Which variables of a server's environment are stored with a run; the others on resume."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from enginehouse.core.errors import ConfigurationError
from enginehouse.engines.options import ServerOptions
from enginehouse.engines.registry import engine_variables

_SETTING = re.compile(r"[A-Z0-9_]+")
_KEPT = re.compile(
    r"(CUDA|HIP|ROCR|NVIDIA|NCCL|RCCL|GLOO|UCX|NIXL|TORCH|TORCHINDUCTOR|PYTORCH|TRITON|FLASHINFER"
    r"|OMP|KMP|MKL|OPENBLAS|GOMP|RAY|TOKENIZERS|TRANSFORMERS|HF_HUB)_[A-Z0-9_]+"
    r"|(HF_HOME|LD_LIBRARY_PATH|PATH|TMPDIR|TZ|LANG|LC_ALL)"
)
_SECRET = re.compile(
    r"(^|_)(TOKENS?|(API)?KEYS?|SECRETS?|PASS|PASSWORDS?|PASSWD|CREDENTIALS?|AUTH)$"
)


def is_kept(name: str) -> bool:
    """Whether the value may be stored: that of a setting whose name is not a secret's.

    Settings are those of engines and of what engines run on. Anything that is not
    known to be harmless may be a key, and is left out.
    """
    if _SECRET.search(name) or not _SETTING.fullmatch(name):
        return False
    return _KEPT.fullmatch(name) is not None or name.startswith(engine_variables())


def with_left_out(server: ServerOptions, names: Sequence[str]) -> ServerOptions:
    """A server's options with the variables that were left out of a run's file, from this process.

    Raises ConfigurationError naming those that are not set here.
    """
    known = server.env_vars
    missing = [name for name in names if name not in known and name not in os.environ]
    if missing:
        raise ConfigurationError(
            f"the run's server was started with {', '.join(missing)}, which is not set here",
            why="values that may be secrets are not kept with a run",
            fix=f"set it again: {' '.join(f'{name}=…' for name in missing)} enginehouse resume …",
        )
    values = {name: os.environ[name] for name in names if name not in known}
    return server.model_copy(update={"env_vars": {**known, **values}})
