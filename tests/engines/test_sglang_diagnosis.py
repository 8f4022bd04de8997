"""What a failed SGLang's log is found to say.

logs/recorded/sglang: provoked with the wheel's own code, on a Python with a CPU build of torch.
logs/written/sglang: what takes a GPU; the first line names the source of the text.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.support.engine_logs import diagnose

from enginehouse.diagnosis import READ_THE_LOG, FailureKind, Surroundings, recognise
from enginehouse.diagnosis.rules import RULES as SHARED
from enginehouse.engines.options import ServerOptions
from enginehouse.engines.sglang.diagnosis import RULES
from enginehouse.engines.sglang.engine import SglangEngine

ENGINE = SglangEngine()
LOGS = Path(__file__).parent / "logs"
K = FailureKind

RECORDED = {
    "context_too_long": (K.CONTEXT_TOO_LONG, "at most 8192 tokens", "--max-model-len 8192"),
    "lora_without_rank": (K.WRONG_VALUE, "largest rank", "--lora-target-modules all"),
    "no_gpu": (K.NO_GPU, "NVIDIA GPU", "--engine vllm"),
    "no_such_folder": (K.MODEL_NOT_FOUND, "config.json", "a folder's path"),
    "unknown_architecture": (K.UNSUPPORTED_MODEL, "FancyForCausalLM", "--engine vllm"),
    "unknown_flag": (K.UNKNOWN_FLAG, "--swap-space", "--help"),
    "wrong_value": (K.WRONG_VALUE, "--dtype: invalid choice", "--dtype"),
}
WRITTEN = {
    "cuda_graph_out_of_memory": (K.OUT_OF_MEMORY, "CUDA graphs", "--enforce-eager"),
    "flashinfer_too_old": (K.WRONG_BUILD, "flashinfer_python 0.6.1", "enginehouse install sglang"),
    "heads": (K.PARALLELISM, "2 GPUs", "divides 9"),
    "internal_port_taken": (K.PORT_TAKEN, "29001", "ss -ltnp"),
    "kernels_not_for_this_gpu": (K.CUDA_MISMATCH, "no code for this GPU", "--python PATH"),
    "killed_while_serving": (K.KILLED, "SIGKILL", "dmesg"),
    "killed_while_starting": (K.KILLED, "SIGKILL", "dmesg"),
    "lora_rank": (K.WRONG_VALUE, "math has rank 64", "--max-lora-rank 64"),
    "native_crash": (K.CRASHED, "SIGABRT", "--enforce-eager"),
    "no_cache_memory": (K.NO_CACHE_MEMORY, "for the KV cache 0.3", "larger --gpu-memory-util"),
    "out_of_memory": (K.OUT_OF_MEMORY, "memory ran out", "smaller --gpu-memory-utilization"),
    "port_taken": (K.PORT_TAKEN, "another program", "--port"),
    "told_to_stop": (K.STOPPED, "was told to stop", "enginehouse resume"),
    "unknown_while_serving": (K.ENGINE_DIED, "while it was answering", "report it to SGLang"),
    "watchdog": (K.TOO_SLOW, "300.0 s", "--watchdog-timeout"),
    "weights_fill_the_share": (K.NO_CACHE_MEMORY, "(0.5)", "above 0.713"),
}
CASES = {f"recorded/sglang/{name}": expected for name, expected in RECORDED.items()} | {
    f"written/sglang/{name}": expected for name, expected in WRITTEN.items()
}
LINES = {
    "OSError: [Errno 28] No space left on device": K.DISK_FULL,
    "sglang serve: error: argument --dtype: invalid choice: 'int8'": K.WRONG_VALUE,
    "RuntimeError: The memory capacity is unbalanced. Some GPUs may be occupied": K.MEMORY_TAKEN,
    "RuntimeError: CUDA error: invalid device ordinal": K.PARALLELISM,
    "ValueError: The quantization method fp8 is not supported for the current GPU. Minimum "
    "capability: 80. Current capability: 75.": K.QUANTIZATION,
    "ValueError: torch.bfloat16 is not supported for quantization method awq. Supported dtypes: "
    "[torch.float16]": K.UNSUPPORTED_DTYPE,
    "huggingface_hub.errors.GatedRepoError: 403 Client Error.": K.MODEL_GATED,
    "OSError: We couldn't connect to 'https://hub.example' to load the files": K.MODEL_NOT_FOUND,
    "RuntimeError: Cannot find any model weights with `/models/m`": K.MODEL_INCOMPLETE,
    "safetensors_rust.SafetensorError: Error while deserializing header": K.MODEL_BROKEN,
    "ValueError: The repository m contains custom code which must be executed": K.REMOTE_CODE,
    "RuntimeError: The NVIDIA driver on your system is too old": K.CUDA_MISMATCH,
    "RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist": (
        K.NO_COMPILER
    ),
    "torch.AcceleratorError: CUDA error: an illegal memory access was encountered": K.CRASHED,
    "ValueError: LoRA buffer shape torch.Size([2]) does not match weight shape torch.Size([3]).": (
        K.WEIGHTS_MISMATCH
    ),
    "AssertionError: res=<Response [503]>, res.text=''": K.COMMUNICATION,
}


@pytest.mark.parametrize(("name", "expected"), CASES.items())
def test_a_known_failure(name: str, expected: tuple[FailureKind, str, str]):
    """A failure's log gives its kind, its cause in words, its numbers, and the next step."""
    kind, cause, fix = expected
    diagnosis = diagnose(ENGINE, LOGS / f"{name}.log", exit_code=-9)
    assert diagnosis is not None
    assert diagnosis.kind is kind
    assert cause in diagnosis.cause
    assert fix in diagnosis.fix
    assert diagnosis.evidence.removesuffix("…") in (LOGS / f"{name}.log").read_text()
    assert not re.search(r"[{}]", diagnosis.cause + diagnosis.fix)


def test_every_log_is_looked_at_and_says_where_it_comes_from():
    """No log lies there that no test reads; what was not recorded says so."""
    logs = LOGS.glob("*/sglang/*.log")
    names = {path.relative_to(LOGS).with_suffix("").as_posix(): path for path in logs}
    assert names.keys() == CASES.keys()
    for name, path in names.items():
        first = {"recorded": "# Recorded with ", "written": "# Written after "}
        assert path.read_text().startswith(first[name.partition("/")[0]]), path


@pytest.mark.parametrize(("line", "kind"), LINES.items())
def test_a_telling_line(line: str, kind: FailureKind):
    """One line of transformers, torch or SGLang is enough."""
    diagnosis = recognise(line, rules=(*RULES, *SHARED), around=Surroundings())
    assert diagnosis is not None
    assert diagnosis.kind is kind


def test_every_rule_is_told_apart_by_a_log_or_a_line():
    """A rule of a kind that nothing here provokes would be untested."""
    kinds = {kind for kind, _, _ in CASES.values()} | set(LINES.values())
    assert {rule.kind for rule in RULES} <= kinds


def test_a_request_that_was_refused_is_no_reason_for_the_end(tmp_path: Path):
    """After it was ready only what ends a process counts; then the exit code is all there is."""
    log = tmp_path / "server.log"
    log.write_text(
        "[2026-11-21 04:30:17] The server is fired up and ready to roll!\n"
        "[2026-11-21 04:31:17] Error in request: too long\nValueError: too long\n"
    )
    assert diagnose(ENGINE, log) is None
    killed = diagnose(ENGINE, log, exit_code=137)
    assert killed is not None
    assert killed.kind is K.KILLED


def test_what_no_rule_knows_is_the_first_exception(tmp_path: Path):
    """An unknown failure shows its own line, cut to a readable length, and the log."""
    log = tmp_path / "server.log"
    log.write_text(f"Traceback (most recent call last):\nKeyError: {'x' * 900}\nValueError: y\n")
    diagnosis = diagnose(ENGINE, log, exit_code=1)
    assert diagnosis is not None
    assert diagnosis.kind is K.UNKNOWN
    assert diagnosis.cause.startswith("KeyError: x")
    assert len(diagnosis.cause) < 500
    assert diagnosis.fix == READ_THE_LOG
    assert diagnose(ENGINE, tmp_path / "none.log") is None


def test_every_flag_of_an_advice_exists():
    """A next step names options of ours or of SGLang, or one of another program."""
    known = set(json.loads(Path(__file__).with_name("sglang-0.5.23-flags.json").read_text()))
    known |= {f"--{name.replace('_', '-')}" for name in ServerOptions.model_fields}
    known |= {"--env", "--engine", "--python", "--shm-size", "--gpus", "--help"}
    for rule in RULES:
        assert set(re.findall(r"(?<![\w-])--[a-z-]+", rule.fix)) <= known, rule.fix
