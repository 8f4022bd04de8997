"""What is said of values that JSON does not have."""

from __future__ import annotations

import importlib.util
import json
import math

from enginehouse.provisioning.programs import PAYLOADS


def test_what_is_not_finite_is_null():
    """NaN is no JSON: the controller could not read it."""
    path = PAYLOADS / "reference_logprobs.py"
    spec = importlib.util.spec_from_file_location("reference_logprobs", path)
    assert spec is not None
    assert spec.loader is not None
    payload = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(payload)
    values = payload.finite([-1.5, math.nan, -math.inf, 0.0])
    assert json.dumps(values, allow_nan=False) == "[-1.5, null, null, 0.0]"
