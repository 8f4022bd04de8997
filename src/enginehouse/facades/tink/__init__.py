"""Tink's `vllm_backend` under its own names: functions that block, for any number of threads.

Only the import line changes. They share one connection to a vLLM that runs; the first of them opens
it as the environment says, unless `initialize_vllm_client` has. What is different from Tink's, and
why, stands in docs/coming-from.md. Warnings go to the logger "enginehouse.facades.tink".
"""

from enginehouse.facades.tink.configuration import VLLMConfig
from enginehouse.facades.tink.errors import NoAdapterError, UnreachableError
from enginehouse.facades.tink.functions import (
    VLLMClient,
    close_communicator,
    close_vllm_client,
    generate_with_vllm,
    get_client_info,
    init_communicator,
    initialize_vllm_client,
    list_lora_adapters,
    register_lora_adapter,
    reset_prefix_cache,
    unregister_lora_adapter,
    update_model_weights,
)

__all__ = [
    "NoAdapterError",
    "UnreachableError",
    "VLLMClient",
    "VLLMConfig",
    "close_communicator",
    "close_vllm_client",
    "generate_with_vllm",
    "get_client_info",
    "init_communicator",
    "initialize_vllm_client",
    "list_lora_adapters",
    "register_lora_adapter",
    "reset_prefix_cache",
    "unregister_lora_adapter",
    "update_model_weights",
]
