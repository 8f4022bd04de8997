"""examples/run_vllm_server.py: the same server by the old spellings."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from tests.support.command_line import House, port_is_free, url_of
from tests.support.leased_ports import free_port

SCRIPT = Path(__file__).parents[2] / "examples/run_vllm_server.py"


def words(*arguments: str) -> list[str]:
    """What `enginehouse` is called with."""
    return list(runpy.run_path(str(SCRIPT))["serve_words"](arguments))


def test_the_document_s_line_is_a_line_of_ours() -> None:
    """The model is serve's argument; port and engine are those of the original."""
    assert words("--model", "meta-llama/Llama-2-7b-chat-hf", "--port", "8000") == [
        *("serve", "meta-llama/Llama-2-7b-chat-hf", "--port", "8000", "--engine=vllm")
    ]
    assert words("--model=m") == ["serve", "m", "--port=8000", "--engine=vllm"]


def test_old_spellings_are_accepted_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    """Each is named with what it is now."""
    given = ("--model", "m", "--gpu-memory", "0.8", "--enable-function-calling", "--dtype", "half")
    assert words(*given) == [
        *("serve", "m", "--gpu-memory-utilization", "0.8", "--dtype=float16"),
        *("--port=8000", "--engine=vllm"),
    ]
    warned = capsys.readouterr().err
    assert "--gpu-memory is --gpu-memory-utilization now" in warned
    assert "--enable-function-calling is not needed" in warned
    assert "half is float16 now" in warned


def test_today_s_spellings_pass_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    """Every option that the document lists, and any other of `enginehouse serve`."""
    given = (
        *("--tensor-parallel-size", "2", "--gpu-memory-utilization=0.9", "--max-model-len", "4096"),
        *("--dtype=auto", "--host", "127.0.0.1", "--trust-remote-code", "--max-num-seqs", "8"),
    )
    assert words("--model", "m", *given)[2:-2] == list(given)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_it_serves(house: House) -> None:
    """Ctrl-C ends it, with everything that it had started; the engine got its flags."""
    house.model()
    record = house.folder / "record"
    port = free_port()
    running = house.start_program(
        [
            *(sys.executable, str(SCRIPT), "--model", "./tiny", "--port", str(port)),
            *("--gpu-memory", "0.5", "--max-model-len", "512", "--dtype", "half"),
            *("--env", f"VLLM_FAKE_RECORD={record}"),
        ]
    )
    url = url_of(running.until("ready after"))
    assert url == f"http://127.0.0.1:{port}"
    running.interrupt()
    ended = running.end()
    assert ended.code == 130, ended.err
    assert "warning: --gpu-memory is --gpu-memory-utilization now" in ended.err
    argv = " ".join(json.loads(record.read_text().splitlines()[0])["argv"])
    for flag in ("gpu-memory-utilization 0.5", "max-model-len 512", "dtype float16"):
        assert flag in argv.replace("=", " ")
    assert port_is_free(url)


@pytest.mark.slow
def test_a_wrong_option_is_named_with_the_nearest(house: House) -> None:
    """Nothing is swallowed on the way."""
    ended = house.start_program(
        [sys.executable, str(SCRIPT), "--model", "m", "--tensor-paralel", "2"]
    ).end()
    assert ended.code == 2
    assert "--tensor-parallel-size" in ended.err
