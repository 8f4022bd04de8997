"""What a failed llama-server's log is found to say: logs of a real one (see llamacpp_logs)."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tests.support.engine_logs import diagnose

from enginehouse.diagnosis import FailureKind as K
from enginehouse.engines.llamacpp.engine import LlamaCppEngine

ENGINE = LlamaCppEngine()
LOGS = Path(__file__).parent / "llamacpp_logs"
RECORDED = {
    "bad_lora": (K.MODEL_BROKEN, "an adapter", "download or copy"),
    "bad_version": (K.UNSUPPORTED_MODEL, "version 99", "ENGINEHOUSE_LLAMACPP_SERVER"),
    "host_memory": (K.HOST_MEMORY, "1440.00 MB", "--max-num-seqs"),
    "lora_is_model": (K.WRONG_VALUE, "expect general.type", "convert_lora_to_gguf"),
    "missing": (K.MODEL_NOT_FOUND, "nothere.gguf", "check the path"),
    "missing_library": (K.MISSING_LIBRARY, "libllama-server-impl.so", "LD_LIBRARY_PATH"),
    "no_lora": (K.MODEL_NOT_FOUND, "nolora.gguf", "--lora"),
    "no_such_device": (K.WRONG_VALUE, "invalid device: CUDA0", "extra_args"),
    "not_gguf": (K.MODEL_BROKEN, "GGUF", "git lfs pull"),
    "port_taken": (K.PORT_TAKEN, "port 18441", "port"),
    "truncated": (K.MODEL_BROKEN, "cut off", "download"),
    "truncated_header": (K.MODEL_BROKEN, "cut off", "download"),
    "unknown_arch": (K.UNSUPPORTED_MODEL, "zlama", "--engine"),
    "wrong_flag": (K.UNKNOWN_FLAG, "--nonsense", "--help"),
    "wrong_number": (K.WRONG_VALUE, "--batch-size", "extra_args"),
    "wrong_value": (K.WRONG_VALUE, "q9", "--cache-type-k"),
}


def test_every_recorded_log_has_its_expectation():
    """A log that nobody looks at would be no test."""
    named = {*RECORDED, "killed", "told_to_stop"}
    assert {path.stem for path in LOGS.glob("*.log")} == named


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_the_first_cause_is_named(name: str):
    """Its kind, the words that matter, and what to do; the evidence is a line of the log."""
    kind, cause, fix = RECORDED[name]
    log = LOGS / f"{name}.log"
    found = diagnose(ENGINE, log, exit_code=1)
    assert found is not None
    assert found.kind is kind
    assert cause in found.cause
    assert fix in found.fix
    assert found.evidence in log.read_text()


def test_a_server_that_was_told_to_stop_did_not_fail():
    """Its last words are no error."""
    found = diagnose(ENGINE, LOGS / "told_to_stop.log", exit_code=0)
    assert found is not None
    assert found.kind is K.STOPPED


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (signal.SIGKILL, K.KILLED, "dmesg"),
        (signal.SIGILL, K.CRASHED, "enginehouse install llamacpp"),
        (signal.SIGSEGV, K.CRASHED, "--no-repack"),
        (signal.SIGABRT, K.CRASHED, "last lines"),
        (signal.SIGBUS, K.CRASHED, "copy the file again"),
    ],
)
def test_a_silent_death_is_read_from_its_exit_code(number: int, kind: K, words: str):
    """A shell's code for a signal, too; with neither, nothing is claimed."""
    log = LOGS / "killed.log"
    for code in (-number, 128 + number):
        found = diagnose(ENGINE, log, exit_code=code)
        assert found is not None
        assert found.kind is kind
        assert words in found.fix
    assert diagnose(ENGINE, log, exit_code=None) is None


def test_an_unknown_error_is_quoted(tmp_path: Path):
    """No rule knows it: the first line of level E is the evidence, cut if it is endless."""
    log = tmp_path / "server.log"
    log.write_text(f"0.00.000.001 I srv  fine\n0.00.000.002 E srv  odd {'x' * 900}\n")
    found = diagnose(ENGINE, log, exit_code=1)
    assert found is not None
    assert found.kind is K.UNKNOWN
    assert found.evidence.startswith("srv  odd xxx")
    assert len(found.evidence) < 500


def test_what_a_ready_server_complained_of_before_is_no_cause(tmp_path: Path):
    """Once it listens, what was said before did not keep it from that."""
    log = tmp_path / "server.log"
    log.write_text(
        "0.00.000.001 E gguf_init_from_reader: failed to read magic\n"
        "0.00.000.002 I srv  llama_server: listening on http://127.0.0.1:1\n"
    )
    assert diagnose(ENGINE, log, exit_code=1) is None


def test_no_log_says_nothing(tmp_path: Path):
    """A file that is not there is no error of ours."""
    assert diagnose(ENGINE, tmp_path / "none.log", exit_code=1) is None
