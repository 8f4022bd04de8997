"""How vLLM's servers are asked: its endpoints beside OpenAI's, and its metrics.

Read in vllm/entrypoints/serve/dev and entrypoints/rl/online of 0.32, and tried on its CPU build.
"""

from __future__ import annotations

import base64
import pickle
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from enginehouse.client.transport import WireRequest
from enginehouse.client.wire import (
    TOKENIZING,
    InFlight,
    TransferEndpoints,
    UpdateInfo,
    WeightEndpoints,
    Wire,
    adapter_endpoints,
    administer,
)
from enginehouse.core.sampler import Load
from enginehouse.dialects.openai_replies import decode_reply
from enginehouse.engines.metrics import read_metrics, total

_PAUSE_MODES: Mapping[InFlight, str] = {"drain": "wait", "abort": "abort"}


def _pause(in_flight: InFlight) -> tuple[WireRequest, ...]:
    return (administer("POST", f"/pause?mode={_PAUSE_MODES[in_flight]}"),)


def _sleep(in_flight: InFlight) -> tuple[WireRequest, ...]:
    mode = _PAUSE_MODES[in_flight]
    # The weights' memory must be there before they are loaded; the cache's waits until after.
    return (
        administer("POST", f"/sleep?level=2&mode={mode}"),
        administer("POST", "/wake_up?tags=weights"),
    )


def _reload(path: str) -> WireRequest:
    body = {"method": "reload_weights", "kwargs": {"weights_path": path}}
    return administer("POST", "/collective_rpc", body)


def _name_weights(name: str) -> WireRequest:
    return administer("POST", "/update_weight_version", {"new_version": name})


def _init_transfer(info: Mapping[str, Any]) -> WireRequest:
    return administer("POST", "/init_weight_transfer_engine", {"init_info": info})


def _update_weights(info: UpdateInfo) -> WireRequest:
    plain = _plain_update(info) if isinstance(info, Mapping) else [_plain_update(i) for i in info]
    return administer("POST", "/update_weights", {"update_info": plain})


def _plain_update(info: Mapping[str, Any]) -> Mapping[str, Any]:
    """Handles of GPU memory are not JSON: vLLM takes them as a pickle in base64."""
    if info.get("ipc_handles") is None:
        return info
    plain = {key: value for key, value in info.items() if key != "ipc_handles"}
    pickled = base64.b64encode(pickle.dumps(info["ipc_handles"]))
    return plain | {"ipc_handles_pickled": pickled.decode("ascii")}


class _Reset(msgspec.Struct):
    success: bool


class _WeightInfo(msgspec.Struct):
    weight_version: str


class _WorldSize(msgspec.Struct):
    world_size: int


_reset = msgspec.json.Decoder(_Reset)
_weight_info = msgspec.json.Decoder(_WeightInfo)
_world_size = msgspec.json.Decoder(_WorldSize)


_ENABLING_TRANSFER = (
    "serve it with --enable-weight-swap and --extra-args '--weight-transfer-config.backend ipc' "
    "(or nccl)"
)
# The development endpoints, which weight swaps go through.
VLLM_WEIGHTS = WeightEndpoints(
    hold=_pause,
    release=(administer("POST", "/resume"),),
    doze=_sleep,
    wake=(administer("POST", "/wake_up?tags=kv_cache"),),
    sleep_flag="--enable-sleep-mode",
    reload=_reload,
    reset_cache=administer("POST", "/reset_prefix_cache"),
    is_reset=lambda body: decode_reply(_reset, body).success,
    name=_name_weights,
    ask_name=administer("GET", "/weight_info"),
    read_name=lambda body: decode_reply(_weight_info, body).weight_version,
    unnamed="default",
    absent="vLLM has it in development mode only; or this one is too old",
    minus_infinity=-9999.0,
    transfer=TransferEndpoints(
        init=_init_transfer,
        start=administer("POST", "/start_weight_update"),
        update=_update_weights,
        finish=administer("POST", "/finish_weight_update"),
        world_size=administer("GET", "/get_world_size"),
        read_world_size=lambda body: decode_reply(_world_size, body).world_size,
        flags=("--weight-transfer-config", "--weight_transfer_config", "--config"),
        enabling=_ENABLING_TRANSFER,
        refusals={
            "weight_transfer_config": _ENABLING_TRANSFER,
            "VLLM_ALLOW_INSECURE_SERIALIZATION": "serve it with --env "
            "VLLM_ALLOW_INSECURE_SERIALIZATION=1: IPC handles come as a pickle, which may run code "
            "there",
        },
        not_configured="weight_transfer_config",
    ),
)
VLLM = Wire(
    tokenizing=TOKENIZING,
    adapters=adapter_endpoints(prefix="/v1"),
    weights=VLLM_WEIGHTS,
)

_METRIC = re.compile(
    r"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc|prompt_tokens_total"
    r"|generation_tokens_total|num_preemptions_total|prefix_cache_(?:queries|hits)_total)"
    r"(?:\{.*\})? (\S+)",
    re.MULTILINE,
)


class VllmLoadSignal:
    """vLLM's Prometheus metrics, summed over the engines of a data-parallel server."""

    path = "/metrics"

    def parse(self, body: str) -> Load | None:
        """The queue, or None if the body has no queue metrics. One scan, about 0.1 ms."""
        found = read_metrics(_METRIC, body)
        if "num_requests_running" not in found or "num_requests_waiting" not in found:
            return None
        usage = found.get("kv_cache_usage_perc")
        return Load(
            running=int(sum(found["num_requests_running"])),
            waiting=int(sum(found["num_requests_waiting"])),
            kv_cache_usage=max(usage) if usage else None,
            prompt_tokens=total(found.get("prompt_tokens_total")),
            generation_tokens=total(found.get("generation_tokens_total")),
            preemptions=total(found.get("num_preemptions_total")),
            prefix_cache_queries=total(found.get("prefix_cache_queries_total")),
            prefix_cache_hits=total(found.get("prefix_cache_hits_total")),
        )
