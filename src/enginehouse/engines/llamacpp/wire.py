"""How a llama-server is asked: its dialects and its metrics."""

from __future__ import annotations

import re

from enginehouse.client.unchecked import Unchecked
from enginehouse.client.wire import Tokenizing, Wire
from enginehouse.core.sampler import Load
from enginehouse.dialects import llamacpp
from enginehouse.dialects.openai_replies import decode_models, decode_tokenize
from enginehouse.engines.metrics import read_metrics, total


def _unchecked(body: bytes) -> Unchecked:
    return Unchecked(names=decode_models(body), context=llamacpp.decode_context(body))


WIRE = Wire(
    chat=llamacpp.chat,
    completions=llamacpp.completions,
    tokenizing=Tokenizing(
        path="/tokenize", encode=llamacpp.encode_tokenize, decode=decode_tokenize
    ),
    unchecked=_unchecked,
    closes_streams=True,
)
_METRIC = re.compile(
    r"^llamacpp:(requests_processing|requests_deferred|prompt_tokens_total|tokens_predicted_total"
    r"|prompt_tokens_cached_total|n_decode_total)(?:\{.*\})? (\S+)",
    re.MULTILINE,
)


class LlamaCppLoadSignal:
    """llama-server's Prometheus metrics. It counts a request's tokens when it ends."""

    path = "/metrics"

    def parse(self, body: str) -> Load | None:
        """The queue, or None if the body has no queue metrics."""
        found = read_metrics(_METRIC, body)
        if "requests_processing" not in found or "requests_deferred" not in found:
            return None
        computed = total(found.get("prompt_tokens_total"))
        cached = total(found.get("prompt_tokens_cached_total"))
        return Load(
            running=int(sum(found["requests_processing"])),
            waiting=int(sum(found["requests_deferred"])),
            prompt_tokens=computed,
            generation_tokens=total(found.get("tokens_predicted_total")),
            prefix_cache_queries=None if computed is None or cached is None else computed + cached,
            prefix_cache_hits=cached,
            steps=total(found.get("n_decode_total")),
        )
