"""How much memory the KV cache may take, and the context length that this allows."""

from __future__ import annotations

import os

import torch

from hf_server.options import Options

_SHARE = 4  # on a CPU the cache takes at most this part of the memory
_WORKING = 1 << 30  # bytes left to a GPU's forward passes


def cache_tokens(options: Options, *, device: torch.device, bytes_per_token: int) -> int | None:
    """The tokens that the cache can hold; None if the size of a token is unknown.

    Raises RuntimeError where nothing is left for it.
    """
    if not bytes_per_token:
        return None
    if options.kv_cache_memory_bytes is not None:
        room = options.kv_cache_memory_bytes
    elif device.type == "cuda":
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        room = free - int((1 - options.gpu_memory_utilization) * total) - _WORKING
    else:
        room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _SHARE
    if room < bytes_per_token:
        raise RuntimeError(
            "No available memory for the KV cache: the weights fill what --gpu-memory-utilization "
            "and --kv-cache-memory-bytes leave"
        )
    return room // bytes_per_token


def plan_length(options: Options, *, model: int | None, cache: int | None) -> int:
    """The longest context: the requested one, or what the model and the cache allow.

    Raises RuntimeError if the model or the cache cannot hold the requested one.
    """
    wanted = options.max_model_len
    if wanted is None:
        return min(length for length in (model, cache, 1 << 20) if length)
    if model is not None and wanted > model:
        raise RuntimeError(
            f"max_model_len ({wanted}) is greater than the model's own ({model}): it was made for "
            "no more"
        )
    if cache is not None and wanted > cache:
        raise RuntimeError(
            f"max_model_len ({wanted}) is greater than what the KV cache can hold ({cache} tokens)"
        )
    return wanted
