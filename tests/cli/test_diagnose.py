"""`enginehouse diagnose`: any engine's log, from a file or a pipe, for people and programs."""

from __future__ import annotations

from pathlib import Path

LOGS = Path(__file__).parents[1] / "diagnosis/logs"


def test_a_log_is_explained(call):
    """Engine and kind, why, what was seen, what to do."""
    done = call("diagnose", str(LOGS / "vllm/wrong_value--lora_rank.log"))
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == "vllm: wrong_value"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["why", "seen", "next"]


def test_json_is_for_programs(call):
    """Kind, evidence, cause and next step, by name."""
    done = call("diagnose", "--json", str(LOGS / "llamacpp/out_of_memory--cudamalloc.log"))
    assert set(done.report) == {"engine", "kind", "evidence", "cause", "next", "guess"}
    assert done.report["engine"] == "llamacpp"
    assert done.report["kind"] == "out_of_memory"
    assert "cudaMalloc failed" in done.report["evidence"]


def test_an_exit_code_speaks_where_the_log_does_not(call, tmp_path: Path):
    """-9 after an option is its value; a log that says nothing is said to say nothing."""
    log = tmp_path / "server.log"
    log.write_text("(EngineCore pid=7) INFO 11-21 04:30:17 [core.py:1] all is well\n")
    assert "says nothing" in call("diagnose", str(log)).out
    assert call("diagnose", str(log), "--exit-code", "-9").out.startswith("vllm: killed")
    assert call("diagnose", str(log), "--json").report["kind"] is None


def test_an_engine_can_be_named(call, tmp_path: Path):
    """It then reads by that engine's rules; one that is not started here has no log."""
    log = tmp_path / "server.log"
    log.write_text("E nothing that tells whose log it is\n")
    assert call("diagnose", str(log), "--engine", "llamacpp").out.startswith("llamacpp:")
    assert call("diagnose", str(log)).out.startswith("unknown engine")
    done = call("diagnose", str(log), "--engine", "openai")
    assert done.code == 2
    assert "llamacpp" in done.err


def test_a_file_that_cannot_be_read(call, tmp_path: Path):
    """Missing, a folder, or packed: status 2, and what to do."""
    assert call("diagnose", str(tmp_path / "none.log")).code == 2
    assert call("diagnose", str(tmp_path)).code == 2
    packed = tmp_path / "server.log.gz"
    packed.write_bytes(b"\x1f\x8b\x08\0\0\0\0\0")
    done = call("diagnose", str(packed))
    assert done.code == 2
    assert "zcat" in done.err
