"""What of a request decides its answer, and whether asking again would give the same one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NoReturn

import msgspec

SAMPLED_PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
RECORDED_PATHS = SAMPLED_PATHS | {"/v1/embeddings"}
WITHOUT_EFFECT = frozenset(
    {
        "metadata",
        "priority",
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
"""Fields that say who asks, how urgently, and what a vendor keeps of it: not what is answered."""
_RANDOM_SEED = 2**32 - 1  # llama.cpp's way to ask for any seed; negative ones are vLLM's

_encoder = msgspec.json.Encoder(order="deterministic", decimal_format="number")


class CanonicalRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request whose answer can be recorded.

    `digest` covers the path and what of the body decides the answer: not the order of fields, nor
    spaces, nor WITHOUT_EFFECT. `repeatable`: nothing in the answer is left to chance (temperature
    0, scores of the prompt, an embedding). `seeded`: the chance is that of a seed. `text` is the
    body as it came.
    """

    path: str
    digest: bytes
    text: str
    streamed: bool
    repeatable: bool
    seeded: bool


def read_request(path: str, body: bytes) -> CanonicalRequest | None:
    """The request, or None for one that is never recorded: another path, or not a JSON object.

    A streamed answer has a digest of its own, together with its `stream_options`. Numbers count as
    they are written: 0.10 and 0.1 are different requests, which costs at most a repetition.
    """
    if path not in RECORDED_PATHS:
        return None
    try:
        text = body.decode()
        fields = json.loads(text, parse_float=Decimal, parse_constant=_refuse_constant)
        if not isinstance(fields, dict):
            return None
        streamed = fields.get("stream") is True
        canonical = _encoder.encode(_deciding(fields, streamed=streamed))
    except (ValueError, RecursionError, ArithmeticError):
        return None
    scores = _asks_for_scores_only(fields)
    return CanonicalRequest(
        path=path,
        digest=hashlib.sha256(b"%s\n%s" % (path.encode(), canonical)).digest(),
        text=text,
        streamed=streamed,
        repeatable=path not in SAMPLED_PATHS or scores or _is_zero(fields.get("temperature")),
        seeded=_is_seed(fields.get("seed")),
    )


def _deciding(fields: Mapping[str, Any], *, streamed: bool) -> dict[str, Any]:
    left_out = WITHOUT_EFFECT if streamed else WITHOUT_EFFECT | {"stream", "stream_options"}
    return {name: value for name, value in fields.items() if name not in left_out}


def _asks_for_scores_only(fields: Mapping[str, Any]) -> bool:
    """Whether it asks for log-probabilities of the prompt, and at most the one token for it."""
    given = (fields.get("max_tokens"), fields.get("max_completion_tokens"))
    limits = [limit for limit in given if limit is not None]
    if not limits or not all(limit in (0, 1) for limit in limits):
        return False
    echoed = fields.get("echo") is True and fields.get("logprobs") is not None
    return not any(limits) or echoed or fields.get("prompt_logprobs") is not None


def _is_zero(value: object) -> bool:
    return isinstance(value, (int, Decimal)) and not isinstance(value, bool) and value == 0


def _is_seed(value: object) -> bool:
    return (
        isinstance(value, int)
        and not isinstance(value, bool)
        and value >= 0
        and value != _RANDOM_SEED
    )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
