"""How SGLang's servers are asked: dialects, adapters and metrics. Read in the sources of 0.5.23."""

from __future__ import annotations

import re

import msgspec

from enginehouse.client.wire import TOKENIZING, Wire, adapter_endpoints
from enginehouse.core.sampler import Load
from enginehouse.dialects import sglang as dialects
from enginehouse.dialects.openai_replies import decode_reply
from enginehouse.engines.metrics import total


class _Models(msgspec.Struct):
    class Card(msgspec.Struct):
        id: str
        parent: str | None = None

    data: list[Card]


_models = msgspec.json.Decoder(_Models)


def adapted(base: str, adapter: str) -> str:
    """The model that a request names to be answered by an adapter.

    The adapter's name alone would be answered by the base model, as any unknown name is.
    """
    return f"{base}:{adapter}"


def decode_models(body: bytes) -> tuple[str, ...]:
    """See Wire.decode_models: adapters come by the names that requests must use."""
    cards = decode_reply(_models, body).data
    return tuple(adapted(card.parent, card.id) if card.parent else card.id for card in cards)


SGLANG = Wire(
    chat=dialects.chat,
    completions=dialects.completions,
    decode_models=decode_models,
    tokenizing=TOKENIZING,
    adapters=adapter_endpoints(model=adapted),
)
_METRIC = re.compile(
    r"^sglang:(num_running_reqs|num_queue_reqs|token_usage|prompt_tokens_total"
    r"|generation_tokens_total|num_retracted_requests_total|cached_tokens_total)"
    r"(?:\{(.*)\})? (\S+)",
    re.MULTILINE,
)
# With priority scheduling a queue is counted as a whole (priority="") and again by priority.
_PART = re.compile(r'\bpriority="[^"]')


class SglangLoadSignal:
    """SGLang's Prometheus metrics (--enable-metrics), summed over data-parallel replicas.

    The queue is as of the last batch that was logged (every 40 decoding steps); tokens are counted
    when their request ends.
    """

    path = "/metrics"

    def parse(self, body: str) -> Load | None:
        """The queue, or None if the body has no queue metrics."""
        found: dict[str, list[float]] = {}
        for name, labels, value in _METRIC.findall(body):
            if name.endswith("_total") or not _PART.search(labels):
                found.setdefault(name, []).append(float(value))
        if "num_running_reqs" not in found or "num_queue_reqs" not in found:
            return None
        usage = found.get("token_usage")
        prompt_tokens = total(found.get("prompt_tokens_total"))
        return Load(
            running=int(sum(found["num_running_reqs"])),
            waiting=int(sum(found["num_queue_reqs"])),
            kv_cache_usage=max(usage) if usage else None,
            prompt_tokens=prompt_tokens,
            generation_tokens=total(found.get("generation_tokens_total")),
            preemptions=total(found.get("num_retracted_requests_total")),
            prefix_cache_queries=prompt_tokens,
            prefix_cache_hits=total(found.get("cached_tokens_total")),
        )
