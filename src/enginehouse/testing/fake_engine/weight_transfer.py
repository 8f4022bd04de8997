"""The endpoints of vLLM's weight transfer (entrypoints/rl/online/api_router.py, read in 0.32).

What counts as sent is the JSON of the updates. As in vLLM, an update that fails ends the session
and leaves what was half sent, which spoils whatever is loaded next, until a session is finished.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

import msgspec
from aiohttp import web

from enginehouse.testing.fake_engine.errors import ApiError
from enginehouse.testing.fake_engine.generation import ENGINE
from enginehouse.testing.fake_engine.requests import parse
from enginehouse.testing.fake_engine.state import Engine

_INSECURE = "VLLM_ALLOW_INSECURE_SERIALIZATION"


class _Init(msgspec.Struct):
    init_info: dict[str, Any]


class _Update(msgspec.Struct):
    update_info: dict[str, Any] | list[dict[str, Any]]


async def init_weight_transfer_engine(request: web.Request) -> web.Response:
    """POST /init_weight_transfer_engine."""
    asked: _Init = parse(await request.read(), _Init)
    _configured(request)
    if not isinstance(asked.init_info.get("packed", False), bool):
        raise _fault("Invalid init_info for FakeWeightTransferEngine")
    return web.json_response({"message": "Weight transfer initialized"})


async def start_weight_update(request: web.Request) -> web.Response:
    """POST /start_weight_update: an error during another update."""
    engine = _configured(request)
    if engine.updating:
        raise _fault(
            "start_weight_update called while a weight update is already active. Call "
            "finish_weight_update first."
        )
    engine.updating = True
    return web.json_response({"message": "Weight update started"})


async def update_weights(request: web.Request) -> web.Response:
    """POST /update_weights: an error outside an update; a failure ends the update."""
    asked: _Update = parse(await request.read(), _Update)
    engine = _configured(request)
    if not engine.updating:
        raise _fault("start_weight_update must be called before update_weights.")
    first = asked.update_info[0] if isinstance(asked.update_info, list) else asked.update_info
    engine.updating = False
    if "names" not in first:
        raise _fault("Invalid update_info for FakeWeightTransferEngine: 'names' is missing")
    if "ipc_handles_pickled" in first and os.environ.get(_INSECURE, "0") == "0":
        raise _fault(f"Refusing to deserialize `ipc_handles_pickled` without {_INSECURE}=1")
    engine.updating = True
    engine.half_sent.append(msgspec.json.encode(asked.update_info, order="sorted"))
    return web.json_response({"message": "Weights updated"})


async def finish_weight_update(request: web.Request) -> web.Response:
    """POST /finish_weight_update: from now on the weights are what was sent."""
    engine = _configured(request)
    if not engine.updating:
        raise _fault("finish_weight_update called without a matching start_weight_update.")
    engine.updating = False
    if engine.half_sent:
        sent = b"".join(engine.half_sent)
        engine.weights = hashlib.blake2b(sent, digest_size=16).hexdigest()
        engine.half_sent.clear()
    return web.json_response({"message": "Weight update finished"})


async def get_world_size(request: web.Request) -> web.Response:
    """GET /get_world_size."""
    arguments = request.app[ENGINE].arguments
    size = (
        arguments.tensor_parallel_size
        * arguments.pipeline_parallel_size
        * arguments.data_parallel_size
    )
    return web.json_response({"world_size": size})


def _configured(request: web.Request) -> Engine:
    engine = request.app[ENGINE]
    if engine.arguments.weight_transfer_config is None:
        raise _fault(
            "Weight transfer not configured. Please set weight_transfer_config to enable weight "
            "transfer."
        )
    return engine


def _fault(message: str) -> ApiError:
    return ApiError(message, status=500, kind="InternalServerError")
