"""GRAIL's evaluation settings: its trainer's `EvalConfig`, for a CheckpointEvaluator.

Only the import line changes. docs/coming-from.md lists the differences and the reasons.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args

from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.training import CheckpointEvaluator

Backend = Literal["vllm", "sglang", "hf"]
_ANY_PORT = 30000  # GRAIL's default, which several trainers on one machine would share
# The names in GRAIL's guide, from the time when SGLang was the only server.
_RENAMED = {
    "sglang_start_server": "start_server",
    "sglang_host": "server_host",
    "sglang_port": "server_port",
    "sglang_server_timeout_s": "server_timeout",
}
_WITHOUT_EFFECT = {
    "split": "a task determines its split; give the task's `data`",
    "batch_size": "the server's queue decides how many requests are in flight",
    "vllm_module_entrypoint": "the engine's version decides it",
    "use_num_return_sequences": "each repeat is a separate request with its own seed",
    "report_ks": "the report has pass@k for the powers of two up to `replicates`",
    "store_predictions_path": "every sample is in the run's journal: enginehouse show RUN",
    "stream_server_logs": "the server's log is a file, which the run names",
    "log_completions_n": "every answer is in the run's journal: enginehouse show RUN",
    "log_completions_max_chars": "every answer is in the run's journal: enginehouse show RUN",
    "vllm_return_chosen_logprobs": "they are not stored; tasks that need them ask for them",
}


@dataclass(frozen=True, kw_only=True)
class _Fields:
    enabled: bool = True
    window_interval: int = 20
    split: str = "val"
    subset_size: int | None = None
    seed_base: int = 2025
    batch_size: int = 32
    replicates: int = 5
    max_new_tokens: int = 2048
    temperature: float = 0.8
    top_p: float = 0.95
    do_sample: bool = True
    backend: Backend = "vllm"
    server_host: str = "127.0.0.1"
    server_port: int = _ANY_PORT
    start_server: bool = True
    server_timeout: float = 120.0
    server_trust_remote_code: bool = False
    vllm_python_executable: str | None = None
    vllm_module_entrypoint: str = "vllm.entrypoints.openai.api_server"
    vllm_gpu_memory_utilization: float = 0.82
    vllm_kv_cache_dtype: str = "auto"
    vllm_max_model_len: int = 4096
    vllm_max_num_seqs: int = 160
    vllm_max_concurrent_requests: int = 128
    sglang_mem_fraction_static: float = 0.75
    sglang_context_length: int = 1024
    sglang_max_running_requests: int = 4
    sglang_max_concurrent_requests: int = 4
    use_num_return_sequences: bool = False
    report_ks: tuple[int, ...] = (1, 5, 10)
    store_predictions_path: str | None = None
    stream_server_logs: bool = False
    log_completions_n: int = 1
    log_completions_max_chars: int = 4096
    vllm_return_chosen_logprobs: bool = False


class EvalConfig(_Fields):
    """GRAIL's fields, by name, with its defaults.

    `vllm_python_executable` None means ENGINEHOUSE_VLLM_PYTHON, GRAIL_VLLM_PYTHON, or a managed
    environment, in this order. The `sglang_…` names of `start_server`, `server_host`,
    `server_port` and `server_timeout` are accepted with a warning. Values without effect cause a
    warning, too. Raises ConfigurationError for unknown names and invalid values.
    """

    def __init__(self, **given: Any) -> None:
        for old in [name for name in given if name in _RENAMED]:
            new = _RENAMED[old]
            _warn(f"{old} is called {new}, since it applies to every backend: write {new}")
            given[new] = given.pop(old)
        known = {field.name: field.default for field in fields(self)}
        for name in given:
            if name not in known:
                raise UnknownNameError("field of EvalConfig", name, [*known, *_RENAMED])
        super().__init__(**given)
        if self.backend not in get_args(Backend):
            raise UnknownNameError("backend", self.backend, get_args(Backend))
        if self.window_interval < 1:
            raise ConfigurationError("window_interval must be at least 1")
        for name, instead in _WITHOUT_EFFECT.items():
            if getattr(self, name) != known[name]:
                _warn(f"{name} has no effect: {instead}")

    def is_due(self, window: int) -> bool:
        """Whether the trainer evaluates after this window."""
        return self.enabled and window % self.window_interval == 0

    def settings(self) -> dict[str, Any]:
        """The settings of a CheckpointEvaluator (fields of EvaluationConfig)."""
        common: dict[str, Any] = {
            "engine": self.backend,
            "limit": self.subset_size,
            "seed": self.seed_base,
            "samples": self.replicates,
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature if self.do_sample else 0.0,
            "top_p": self.top_p if self.do_sample else 1.0,
        }
        if self.backend != "hf":
            common["concurrency"] = (
                self.vllm_max_concurrent_requests
                if self.backend == "vllm"
                else self.sglang_max_concurrent_requests
            )
        if not self.start_server:
            return common | {"url": f"http://{self.server_host}:{self.server_port}"}
        if self.backend == "vllm" and self.vllm_python_executable is not None:
            common["python"] = self.vllm_python_executable
        # a timeout without progress: a start that makes progress is not stopped
        return common | {"progress_timeout": self.server_timeout, "server": self._server()}

    def _server(self) -> dict[str, Any]:
        server: dict[str, Any] = {
            "host": self.server_host,
            "port": None if self.server_port == _ANY_PORT else self.server_port,
            "trust_remote_code": self.server_trust_remote_code,
        }
        if self.backend == "vllm":
            server |= {
                "gpu_memory_utilization": self.vllm_gpu_memory_utilization,
                "max_model_len": self.vllm_max_model_len,
                "max_num_seqs": self.vllm_max_num_seqs,
            }
            if self.vllm_kv_cache_dtype != "auto":
                server["extra_args"] = ["--kv-cache-dtype", self.vllm_kv_cache_dtype]
        elif self.backend == "sglang":
            server |= {
                "gpu_memory_utilization": self.sglang_mem_fraction_static,
                "max_model_len": self.sglang_context_length,
                "max_num_seqs": self.sglang_max_running_requests,
            }
        return server


for _old, _new in _RENAMED.items():
    setattr(EvalConfig, _old, property(attrgetter(_new)))


def make_evaluator(
    config: EvalConfig, *, tasks: Sequence[str], folder: Path | str, **settings: Any
) -> CheckpointEvaluator:
    """An evaluator of `tasks` as `config` says; `settings` take precedence.

    Raises ConfigurationError.
    """
    return CheckpointEvaluator(tasks, folder=folder, **(config.settings() | settings))


def _warn(text: str) -> None:
    warnings.warn(f"EvalConfig: {text}", UserWarning, stacklevel=3)
