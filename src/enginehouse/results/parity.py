"""How far an engine's log-probabilities are from transformers'."""

from __future__ import annotations

import msgspec

from enginehouse.statistics.parity import TokenParity


class ParityReport(msgspec.Struct, frozen=True, kw_only=True):
    """`agrees` is the verdict: that the mean difference is at most `threshold` nats per token.

    `adapter`: the folder of the one that answered, not the bare model.
    """

    model: str
    adapter: str | None
    engine: str
    engine_version: str | None
    engine_dtype: str
    reference_dtype: str
    threshold: float
    agrees: bool
    parity: TokenParity
