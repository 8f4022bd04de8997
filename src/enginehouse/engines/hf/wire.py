"""How the hf server is asked: with vLLM's endpoints, and metrics of its own."""

from __future__ import annotations

import re

from enginehouse.client.wire import TOKENIZING, Wire, adapter_endpoints
from enginehouse.core.sampler import Load
from enginehouse.engines.metrics import read_metrics, total

WIRE = Wire(tokenizing=TOKENIZING, adapters=adapter_endpoints(prefix="/v1"))
_METRIC = re.compile(
    r"^hf:(num_requests_running|num_requests_waiting|prompt_tokens_total|generation_tokens_total)"
    r"(?:\{.*\})? (\S+)",
    re.MULTILINE,
)


class HfLoadSignal:
    """The server's Prometheus metrics. It counts answers, n of them for a request with n."""

    path = "/metrics"

    def parse(self, body: str) -> Load | None:
        """The queue, or None if the body has no queue metrics."""
        found = read_metrics(_METRIC, body)
        if "num_requests_running" not in found or "num_requests_waiting" not in found:
            return None
        return Load(
            running=int(sum(found["num_requests_running"])),
            waiting=int(sum(found["num_requests_waiting"])),
            prompt_tokens=total(found.get("prompt_tokens_total")),
            generation_tokens=total(found.get("generation_tokens_total")),
        )
