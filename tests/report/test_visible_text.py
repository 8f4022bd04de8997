"""Text of others on a terminal: shown, never obeyed."""

from __future__ import annotations

import io
import json
import os
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.live import Live
from rich.text import Text

from enginehouse.report.terminal import make_console, make_table, print_rows
from enginehouse.report.visible_text import (
    OutputClosed,
    silence,
    visible,
    visible_json,
    write_plain,
    write_text,
)

HOSTILE = {
    "clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "title": "\x1b]0;root@host\x1b\\",
    "clear": "\x1b[2J\x1b[H",
    "link": "\x1b]8;;http://evil.example\x1b\\bank\x1b]8;;\x1b\\",
    "C1": "\x9b2J\x9d52;c;eA==\x9c\x90q\x9c",
    "overwritten": "wrong\rright",
    "backspaces": "no\b\byes",
    "bidi": "\u202egnp.exe\u202c \u2066x\u2069",
    "bell and shifts": "\x07\x0e\x0f\x7f\x00",
    "half a pair": "\ud83d",
}
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_control_characters_are_shown(text: str):
    """None is left; everything else is."""
    shown = visible(f"a{text}b")
    assert CONTROL.search(shown) is None
    assert [c for c in text if not CONTROL.match(c) and c not in shown] == []


def test_each_reads_as_in_a_python_string():
    """So that the reader knows what it was."""
    assert visible("\x1b[2J\x9b\r\x00\u202e\ud83d\x7f") == (r"\x1b[2J\x9b\r\x00\u202e\ud83d\x7f")


def test_ordinary_text_stays():
    """Lines, tabs, other scripts, joined emoji and markup are nobody's enemy."""
    text = "one\ttwo\nAntwort: ß 漢字 שלום مرحبا 👩‍👩‍👧 [red]plain[/red] \\x1b"
    assert visible(text) == text
    assert visible("a\r\nb") == "a\nb"


@given(st.text(alphabet="\x1b]52;c\x07[2J\x9b\r\n\u202eab"), st.integers(0, 20))
def test_a_sequence_in_two_pieces(text: str, cut: int):
    """Wherever a stream is cut, nothing that a terminal obeys comes through."""
    shown = visible(text[:cut]) + visible(text[cut:])
    assert CONTROL.search(shown) is None


@pytest.mark.slow
@given(st.text())
def test_json_means_the_same(text: str):
    """To a parser; a terminal sees no C1 and no bidi character, which JSON need not escape."""
    document = json.dumps({"a": text}, ensure_ascii=False)
    shown = visible_json(document)
    assert CONTROL.search(shown) is None
    assert json.loads(shown) == {"a": text}


def test_tables_and_live_displays_show_them():
    """In cells, headers, titles and what is redrawn in place; the colours are our own."""
    text = "".join(HOSTILE.values())
    stream = io.StringIO()
    console = make_console(stream)
    table = make_table(text, "two")
    table.add_row(Text(text, style="red"), text)
    console.print(table, Text(text), text)
    with Live(console=console, auto_refresh=False) as live:
        live.update(Text(text), refresh=True)
    print_rows(("a", "b"), [(text, "c")], file=stream)
    assert CONTROL.search(stream.getvalue()) is None
    assert "\\x1b]52;c;" in stream.getvalue()
    terminal = io.StringIO()
    console = make_console(terminal)
    console._force_terminal = True
    console._color_system = console._detect_color_system() or console._color_system
    console.print(Text(text, style="red"))
    assert "\x1b]" not in terminal.getvalue()


def test_nobody_reads_any_more(monkeypatch: pytest.MonkeyPatch):
    """Standard output ends the work; standard error goes silent, and the work continues."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        with pytest.raises(OutputClosed):
            write_text(stream, "hello\n")
        write_plain(stream, "into nowhere\n")
    kept = os.dup(2)
    reading, writing = os.pipe()
    os.close(reading)
    try:
        os.dup2(writing, 2)
        with open(2, "w", closefd=False) as stream:
            write_text(stream, "hello\n")
            write_text(stream, "hello again\n")
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(writing)


def test_a_stream_in_memory_is_left_alone():
    """It has no number that could be silenced."""
    stream = io.StringIO()
    silence(stream)
    write_text(stream, "a\x1b")
    assert stream.getvalue() == "a\\x1b"
    assert sys.stdout is not None
