"""A real HTTP server process with vLLM's surface and deterministic answers; no model inside.

`python -m enginehouse.testing.fake_engine --model m --port 0` takes vLLM's own command line.
Checked against vLLM 0.32.0 by `testing/check_engine.py`, which both pass.
"""

from enginehouse.testing.fake_engine.process import FakeEngineHandle, running_fake_engine

__all__ = ["FakeEngineHandle", "running_fake_engine"]
