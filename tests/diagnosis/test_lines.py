"""Whatever a log is made of, it becomes lines of text, within bounds."""

from __future__ import annotations

import io
import json
import random
import time
import tracemalloc

import pytest

from enginehouse.diagnosis import lines
from enginehouse.diagnosis.lines import LONGEST, read_lines

TEXT = "INFO one\nERROR zwei: größer\nValueError: three\n"


def read(data: bytes) -> list[str]:
    """All lines of a log of these bytes."""
    return list(read_lines(io.BytesIO(data)))


class Pipe(io.RawIOBase):
    """Bytes that cannot be sought in."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        return self._data.read(size)

    def seekable(self) -> bool:
        """It is a pipe."""
        return False


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        TEXT.encode("utf-16-be"),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-32"),
        TEXT.replace("\n", "\r\n").encode(),
    ],
)
def test_encodings(data: bytes):
    """With and without a mark, with the line ends of any system."""
    assert read(data) == TEXT.splitlines()


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("\x1b[1;31mERROR\x1b[0m boom", "ERROR boom"),
        ("36m(Worker pid=1)0m ERROR boom", "(Worker pid=1) ERROR boom"),
        ("36m of cable (two pieces)", "36m of cable (two pieces)"),
        ("\x1b]0;title\x07ERROR boom", "ERROR boom"),
        ("(Core pid=1)ESC[0;0m ERROR boom", "(Core pid=1) ERROR boom"),
        ("[1;36m(Core pid=1)[0;0m boom", "(Core pid=1) boom"),
        ("ERROR\0 boom\x08", "ERROR boom"),
        ("Loading:  50%|#####     | 1/2 [00:01<00:01,  1.02it/s]ERROR boom", "ERROR boom"),
        ("Loading:   0%|          | 0/2 [00:00<?, ?it/s]", ""),
        (json.dumps({"log": "ERROR boom\n", "stream": "stderr"}), "ERROR boom"),
        ('{"message": "ERROR boom", "severity": ' + "[" * 3000, 'ERROR boom", "severity": '),
        ("{not json: ERROR boom", "{not json: ERROR boom"),
    ],
)
def test_what_surrounds_a_text_is_taken_away(raw: str, text: str):
    """Colours, titles, controls, progress bars, a container's JSON."""
    (line,) = read(raw.encode())
    assert line.startswith(text)
    assert line == text or line.strip("[") == text


def test_carriage_returns_end_lines():
    """What is drawn over itself is read as one line after the other."""
    assert read(b"10%\r20%\rERROR boom") == ["10%", "20%", "ERROR boom"]


def test_several_lines_in_one_record_of_json():
    """A record may carry a whole traceback."""
    record = json.dumps({"message": "Traceback (most recent call last):\nValueError: x"})
    assert read(record.encode())[-1] == "ValueError: x"


def test_invalid_bytes_are_replaced():
    """A broken character does not hide the rest of its line."""
    assert read(b"ERROR \xff\xfe boom\n")[0].endswith(" boom")


@pytest.mark.parametrize("pipe", [False, True])
def test_of_a_long_log_both_ends_are_read(monkeypatch: pytest.MonkeyPatch, *, pipe: bool):
    """What is between them is skipped, and says so by an empty line."""
    monkeypatch.setattr(lines, "HEAD", 5_000)
    monkeypatch.setattr(lines, "TAIL", 5_000)
    monkeypatch.setattr(lines, "_CHUNK", 500)
    data = "".join(f"line {number}\n" for number in range(10_000)).encode()
    found = list(read_lines(Pipe(data) if pipe else io.BytesIO(data)))
    assert found[0] == "line 0"
    assert found[-1] == "line 9999"
    assert "" in found
    assert 500 < len(found) < 2_000
    assert "line 5000" not in found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["endless", "noise", "newlines", "braces", "bars"])
def test_hostile_logs_take_bounded_memory_and_time(name: str):
    """Hundreds of megabytes would be read no further than this; a line is cut."""
    size = 6 << 20
    data = {
        "endless": b"x" * size,
        "noise": random.Random(0).randbytes(size),
        "newlines": b"\n" * (1 << 20),
        "braces": b'{"a":' * (size // 5),
        "bars": b"\r 5%|1/2 [00:01<00:01, 1.2it/s]" * (size // 32),
    }[name]
    tracemalloc.start()
    began = time.process_time()
    longest = max(map(len, read_lines(io.BytesIO(data))))
    seconds = time.process_time() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert longest <= LONGEST
    assert peak < 32 << 20
    assert seconds < 60


def test_a_log_in_one_line_is_split():
    """A pasted log may have lost the ends of its lines; a usual line stays as it is."""
    stamp = "ERROR 11-04 18:02:57 [core.py:700] "
    log = (
        "INFO 11-04 18:02:55 [utils.py:1384] Found nccl from library libnccl.so.2 "
        f'{stamp}Traceback (most recent call last): {stamp}File "/env/vllm/core.py", line 6, in f '
        f"{stamp}engine_core = EngineCoreProc(*args, **kwargs) {stamp}ValueError: it is too large "
        "RuntimeError: See root cause above."
    )
    lines = list(read_lines(io.BytesIO(log.encode())))
    assert lines[0].endswith("libnccl.so.2")
    assert any(line.endswith("] ValueError: it is too large") for line in lines)
    assert lines[-1] == "RuntimeError: See root cause above."
    once = "ERROR 11-04 18:02:57 [core.py:700] " + "ValueError: it is too large " * 20
    assert list(read_lines(io.BytesIO(once.encode()))) == [once.rstrip()]


def test_a_frame_and_its_exception_in_one_line_are_split():
    """As a thread's page shows them; a usual frame stays as it is."""
    frame = '  File "/env/a.py", line 5, in send'
    joined = f"{frame} raise Lost(error) requests.exceptions.ConnectionError: no host"
    assert list(read_lines(io.BytesIO(joined.encode()))) == [
        f"{frame} raise Lost(error)",
        "requests.exceptions.ConnectionError: no host",
    ]
    assert list(read_lines(io.BytesIO(frame.encode()))) == [frame]


def test_a_table_that_a_cloud_exported():
    """Its first column, its quotes, and syslog's names of control characters are taken off."""
    exported = (
        "1756144011375,#033[1;36m(Worker pid=9)#033[0;0m INFO loading#015\n"
        '1756144011376,"#033[1;36m(Worker pid=9)#033[0;0m   File ""/a/b.py"", line 3#015"\n'
    )
    assert read(exported.encode()) == [
        "(Worker pid=9) INFO loading",
        '(Worker pid=9)   File "/a/b.py", line 3',
    ]
    assert read(b"see issue #12, and 1756144011375 ms") == ["see issue #12, and 1756144011375 ms"]


def test_a_bracket_and_an_m_are_not_a_colour():
    """The name of a file may begin with it; a colour's end is followed by no word."""
    text = "ERROR 06-10 03:43:33 [multiproc_executor.py:487] x\n[31mred[m\n"
    assert list(read_lines(io.BytesIO(text.encode()))) == [
        "ERROR 06-10 03:43:33 [multiproc_executor.py:487] x",
        "red",
    ]
