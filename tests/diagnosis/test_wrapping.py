"""Lines that a terminal broke are put together again, and no others."""

from __future__ import annotations

from enginehouse.diagnosis.wrapping import rejoin_wrapped

WIDTH = 80
P = "(EngineCore pid=4)"
FILE = "/opt/venv/lib/python3.12/site-packages/vllm/v1/engine/core.py"
ERROR = "ValueError: To serve at least one request with the model's max seq len (100000), 4.26 GiB "
ERROR += "KV cache is needed, which is larger than the available KV cache memory (4.25 GiB)."
LOG = [
    f"{P} INFO 05-01 10:00:00 [core.py:1] starting",
    f'{P}   File "{FILE}", line 305, in initialize_kv_caches',
    f"{P}     raise ValueError(",
    f"{P} {ERROR}",
    f"{P} the engine and all of its processes end now because of the error that is shown above",
]


def wrapped(lines: list[str]) -> list[str]:
    """As a terminal shows them, and loses the spaces at its edge."""
    pieces = [line[i : i + WIDTH] for line in lines for i in range(0, len(line), WIDTH)]
    return [piece.rstrip() for piece in pieces]


def test_a_wrapped_log_is_as_it_was():
    """Words, paths and numbers are whole again."""
    assert list(rejoin_wrapped(wrapped(LOG))) == LOG


def test_a_log_of_lines_of_many_lengths_stays_as_it_is():
    """Its longest line is alone."""
    assert list(rejoin_wrapped(LOG)) == LOG


def test_lines_of_one_length_are_not_joined():
    """A table, or the same message again and again, is followed by new lines."""
    table = ["-" * WIDTH, "| a" + " " * (WIDTH - 4) + "|", "-" * WIDTH, "Traceback (most recent"]
    same = ["INFO 05-01 10:00:00 [core.py:1] " + "x" * 48] * 5
    native = ["llama_model_loader: - kv  3: general.name str = " + "x" * 33] * 4
    for lines in (table, same, [*same, "ValueError: x"], [*native, "llama_load: done"], []):
        assert list(rejoin_wrapped(lines)) == lines
