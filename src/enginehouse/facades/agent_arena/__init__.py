"""Agent Arena's backends under their own names; only the import line changes.

Each may be used from several threads, and inside an event loop, which it blocks. Progress and
failures go to the logger "enginehouse.facades.agent_arena".
"""

from enginehouse.facades.agent_arena.backends import (
    BaseBackend,
    GenerationResult,
    HFBackend,
    LlamaCppBackend,
    VLLMBackend,
    make_backend,
)
from enginehouse.facades.agent_arena.configuration import (
    BackendConfig,
    HFBackendConfig,
    LlamaCppBackendConfig,
    VLLMBackendConfig,
)

__all__ = [
    "BackendConfig",
    "BaseBackend",
    "GenerationResult",
    "HFBackend",
    "HFBackendConfig",
    "LlamaCppBackend",
    "LlamaCppBackendConfig",
    "VLLMBackend",
    "VLLMBackendConfig",
    "make_backend",
]
