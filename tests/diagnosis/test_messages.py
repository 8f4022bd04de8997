"""The last line of a traceback, or llama.cpp's one line of error, is enough (messages.yaml)."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from enginehouse.diagnosis import LogProfile, diagnose_log
from enginehouse.engines.hf.engine import HfEngine
from enginehouse.engines.llamacpp.engine import LlamaCppEngine
from enginehouse.engines.sglang.engine import SglangEngine
from enginehouse.engines.vllm.engine import VllmEngine

PROFILES: dict[str, LogProfile] = {
    "vllm": VllmEngine().log_profile,
    "sglang": SglangEngine().log_profile,
    "llamacpp": LlamaCppEngine().log_profile,
    "hf": HfEngine().log_profile,
}
AROUND = {
    "llamacpp": "srv    load_model: loading model '/m.gguf'\n{}\nmain: exiting due to an error\n",
    "hf": "2025-03-01T09:59:00.000000Z  INFO text_generation_launcher: Args {{\n{}\n",
}
TRACEBACK = 'Traceback (most recent call last):\n  File "/env/a/x.py", line 1, in f\n    x\n{}\n'
MESSAGES = yaml.safe_load(Path(__file__).with_name("messages.yaml").read_text())
CASES = [
    (engine, kind, message)
    for engine, kinds in MESSAGES.items()
    for kind, messages in kinds.items()
    for message in messages
]


@pytest.mark.parametrize(("engine", "kind", "message"), CASES)
def test_a_message(engine: str, kind: str, message: str, tmp_path: Path):
    """Whatever engine says it."""
    log = tmp_path / "server.log"
    log.write_text(AROUND.get(engine, TRACEBACK).format(message))
    found = diagnose_log(log, profile=PROFILES[engine], exit_code=1)
    assert found is not None
    assert found.kind == kind
