from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tests.support.engine_logs import diagnose as diagnose_file

from enginehouse.diagnosis import Diagnosis, FailureKind
from enginehouse.engines.hf.engine import HfEngine

K = FailureKind
HEAD = """INFO 2026-11-21 11:49:34,127 transformers 5.19.0, torch 2.13.0+cpu, 2 threads
INFO 2026-11-21 11:49:34,403 loading /models/tiny in bfloat16 on cpu
"""
READY = HEAD + "INFO 2026-11-21 11:49:36,404 listening on http://127.0.0.1:4000\n"
TRACEBACK = """Traceback (most recent call last):
  File "/payloads/hf_server/__main__.py", line 20, in <module>
    serve(options)
  File "/payloads/hf_server/service.py", line 70, in start
    raise ValueError("MemoryError: not this one")
"""


@pytest.fixture
def diagnose(tmp_path: Path):
    """The diagnosis of a log's text."""

    def found(text: str, exit_code: int | None = 1) -> Diagnosis | None:
        log = tmp_path / "server.log"
        log.write_text(text)
        return diagnose_file(HfEngine(), log, exit_code=exit_code)

    return found


@pytest.mark.parametrize(
    ("kind", "line", "said"),
    [
        (
            K.PORT_TAKEN,
            (
                "OSError: [Errno 98] error while attempting to bind on address ('127.0.0.1', 4000)"
                ": [errno 98] address already in use"
            ),
            "--port",
        ),
        (K.DISK_FULL, "OSError: [Errno 28] No space left on device", "df -h"),
        (
            K.CONTEXT_TOO_LONG,
            (
                "RuntimeError: max_model_len (99999) is greater than the model's own (8192): it "
                "was made for no more"
            ),
            "--max-model-len 8192",
        ),
        (
            K.CONTEXT_EXCEEDS_MEMORY,
            (
                "RuntimeError: max_model_len (8000) is greater than what the KV cache can hold "
                "(2000 tokens)"
            ),
            "--max-model-len 2000",
        ),
        (
            K.NO_CACHE_MEMORY,
            (
                "RuntimeError: No available memory for the KV cache: the weights fill what "
                "--gpu-memory-utilization and --kv-cache-memory-bytes leave"
            ),
            "raise --gpu-memory-utilization",
        ),
        (
            K.OUT_OF_MEMORY,
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has",
            "nvidia-smi",
        ),
        (
            K.HOST_MEMORY,
            (
                "RuntimeError: [enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: "
                "can't allocate memory: you tried to allocate 226492416 bytes."
            ),
            "free -g",
        ),
        (
            K.MODEL_INCOMPLETE,
            (
                "OSError: Error no file named model.safetensors, or pytorch_model.bin, found in "
                "directory /models/tiny."
            ),
            "model.safetensors",
        ),
        (
            K.MODEL_NOT_FOUND,
            (
                "OSError: nobody/nothing is not a local folder and is not a valid model identifier "
                "listed on 'https://huggingface.co/models'"
            ),
            "spelling",
        ),
        (K.MODEL_BROKEN, "safetensors_rust.SafetensorError: Error while deserializing", "git lfs"),
        (
            K.UNSUPPORTED_MODEL,
            (
                "ValueError: The checkpoint you are trying to load has model type `novel` but "
                "Transformers does not recognize this architecture."
            ),
            "novel",
        ),
        (
            K.REMOTE_CODE,
            (
                "ValueError: The repository /models/tiny contains custom code which must be "
                "executed to correctly load the model."
            ),
            "--trust-remote-code",
        ),
        (K.NO_GPU, "RuntimeError: --device cuda: torch finds no CUDA GPU", "nvidia-smi"),
        (K.WRONG_LIBRARY, "ModuleNotFoundError: No module named 'peft'", "peft"),
        (
            K.MISSING_LIBRARY,
            "ImportError: libcudnn.so.9: cannot open shared object file: No such file",
            "libcudnn.so.9",
        ),
    ],
)
def test_the_known_failures(diagnose, kind: FailureKind, line: str, said: str):
    """Each is known by the exception that ends the traceback, and has a next step."""
    found = diagnose(HEAD + TRACEBACK + line + "\n")
    assert found is not None
    assert found.kind is kind
    assert found.evidence == line
    assert said in found.cause + found.fix


def test_a_refused_command_line(diagnose):
    """The words of argparse, after its usage."""
    usage = "usage: hf_server [-h] --model MODEL\nhf_server: error: "
    found = diagnose(usage + "unrecognized arguments: --nonsense 3\n", 2)
    assert found.kind is K.UNKNOWN_FLAG
    assert "--nonsense" in found.cause
    found = diagnose(usage + "argument --max-num-seqs: must be at least 1, got 0\n", 2)
    assert found.kind is K.WRONG_VALUE


def test_code_in_a_traceback_is_no_error(diagnose):
    """The quoted line of code names MemoryError; the exception is another."""
    found = diagnose(HEAD + TRACEBACK + "KeyError: 'odd'\n")
    assert found.kind is K.UNKNOWN
    assert found.evidence == "KeyError: 'odd'"


def test_a_step_that_failed_is_no_reason_for_a_later_death(diagnose):
    """The server survived the first error; the second ended it."""
    survived = "ERROR 2026-11-21 11:50:00,000 a step failed\n" + TRACEBACK
    text = READY + survived + "RuntimeError: shape\n"
    ended = "ERROR 2026-11-21 11:51:00,000 generation failed\n" + TRACEBACK
    ended += "torch.AcceleratorError: CUDA error: an illegal memory access was encountered\n"
    found = diagnose(text + ended + "the generating thread ended: its error is above\n")
    assert found.kind is K.CRASHED
    assert "illegal memory" in found.evidence
    found = diagnose(text)
    assert found.kind is K.ENGINE_DIED


@pytest.mark.parametrize(
    ("exit_code", "kind"),
    [
        (-signal.SIGKILL, K.KILLED),
        (137, K.KILLED),
        (-signal.SIGSEGV, K.CRASHED),
        (-signal.SIGILL, K.CRASHED),
    ],
)
def test_a_death_without_words(diagnose, exit_code: int, kind: FailureKind):
    """The exit code is all there is."""
    assert diagnose(READY, exit_code).kind is kind


def test_being_told_to_stop_is_no_failure(diagnose):
    """SIGTERM is obeyed and logged."""
    assert diagnose(READY + "INFO 2026-11-21 11:53:03,143 stopping\n", 0).kind is K.STOPPED


def test_a_log_that_says_nothing(diagnose, tmp_path: Path):
    """No diagnosis rather than a wrong one."""
    assert diagnose(READY, None) is None
    assert diagnose_file(HfEngine(), tmp_path / "none.log", exit_code=1) is None
