"""Tink's `vllm_backend` under its own names: functions that block, for any number of threads.

Only the import line changes. The functions share one connection to a running vLLM. The first call
opens it according to the environment, unless `initialize_vllm_client` was called before.
docs/coming-from.md lists the differences and the reasons. Warnings go to the logger
"enginehouse.facades.tink".
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
