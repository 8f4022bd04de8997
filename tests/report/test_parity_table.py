"""What `enginehouse parity` prints."""

from __future__ import annotations

import io

import msgspec
import pytest

from enginehouse.report.parity_table import print_parity
from enginehouse.results.parity import ParityReport
from enginehouse.statistics.parity import token_parity

REPORT = ParityReport(
    model="m",
    adapter=None,
    engine="vllm",
    engine_version="0.32.0",
    engine_dtype="bfloat16",
    reference_dtype="bfloat16",
    threshold=0.1,
    agrees=False,
    parity=token_parity([[-1.0, -2.0], [-3.0]], [[-1.0, -2.03], [-3.3]]),
)


@pytest.mark.parametrize(("threshold", "verdict"), [(0.2, "they agree"), (0.1, "do not agree")])
def test_the_figures_and_the_verdict(threshold: float, verdict: str):
    """The place of the largest difference counts from one, and the first token has none."""
    out = io.StringIO()
    agrees = verdict == "they agree"
    print_parity(msgspec.structs.replace(REPORT, threshold=threshold, agrees=agrees), file=out)
    said = out.getvalue()
    assert "m: vllm 0.32.0 (bfloat16) and transformers (bfloat16)" in said
    assert "mean 0.11, largest 0.3 nats (text 2, token 2)" in said
    assert "1.000 to 1.350" in said
    assert "33.3 % outside" in said
    assert verdict in said


def test_the_adapter_and_the_verdict_are_in_both():
    """The JSON and the lines both say what was compared, and the result."""
    report = msgspec.structs.replace(REPORT, adapter="out/lora")
    out = io.StringIO()
    print_parity(report, file=out)
    assert "m+out/lora: vllm" in out.getvalue()
    data = msgspec.to_builtins(report)
    assert (data["adapter"], data["agrees"]) == ("out/lora", False)
