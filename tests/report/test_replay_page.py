"""The replay: every word of a match, nothing smuggled in, pages of bounded size."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from enginehouse.report.replay_page import score_svg, write_replay
from enginehouse.results.replay import MatchReplay, SeatTurn, Speech, TurnReplay

HOSTILE = '<script>alert(1)</script><img src=x onerror="x()"> \u202e\x1b[31m \udc80 & "quoted" </p>'


def replay(match: int = 0, *, words: str = "I trust them.", rounds: int = 3) -> MatchReplay:
    """Two teams: one deliberates, one follows a script."""
    turn = TurnReplay(
        seats=(
            SeatTurn(
                seat="team_a",
                team="base",
                action="BLACK",
                source="tie",
                speeches=(
                    Speech(willingness={0: 1, 1: 3, 2: None}, speaker=1, text=words),
                    Speech(willingness=None, speaker=0, text="So do I."),
                ),
                votes=("BLACK", "RED", None),
            ),
            SeatTurn(
                seat="team_b", team="scripts", action="RED", source="script", speeches=(), votes=()
            ),
        ),
        event="team_a chose BLACK, team_b chose RED",
        scores={"team_a": -6.0, "team_b": 6.0},
    )
    return MatchReplay(
        match=match,
        pairing="base vs scripts",
        seed=7,
        teams={"team_a": "base", "team_b": "scripts"},
        turns=(turn,) * rounds,
        scores={"team_a": -6.0, "team_b": 6.0},
        total=0.0,
        largest_total=150.0,
        calls=42,
        failure=None,
        diverged={"team_a": "round 2, vote of member 1"},
    )


class Reader(HTMLParser):
    """A page's elements, attributes and text; every element must be closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note it."""
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in {"meta", "br"}:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note it; it is closed at once."""
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        """It must be the one that was opened last."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note it."""
        self.text += data


def page_of(tmp_path: Path, *matches: MatchReplay, title: str = "cooperation") -> str:
    """The only page of these matches."""
    (file,) = write_replay(matches, tmp_path / "replay.html", title=title, subtitle="red_black")
    return file.read_text()


def test_everything_that_happened_is_there(tmp_path: Path):
    """Who wished to speak, who was chosen and spoke, the votes, the decision and its source."""
    text = " ".join(Reader(page_of(tmp_path, replay())).text.split())
    for part in (
        "Wish to speak: member 1: 1, member 2: 3 (speaks), member 3: invalid",
        "Member 2 I trust them.",
        "Member 1 So do I.",
        "Votes: member 1 BLACK, member 2 RED, member 3 invalid",
        "team_a (base): BLACK the votes were tied",
        "team_b (scripts): RED by a script",
        "team_a chose BLACK, team_b chose RED",
        "total 0 of at most 150; 42 calls",
        "team_a followed another run's record until round 2, vote of member 1",
        "Round 3",
    ):
        assert part in text, part
    assert text.count("Member 2 I trust them.") == 3


def test_the_page_needs_nothing_else(tmp_path: Path):
    """No script, no address but within the page; the browser is told to refuse both."""
    page = page_of(tmp_path, replay(), replay(1))
    reader = Reader(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(reader.tags)
    links = [value for name, value in reader.attributes if name in {"href", "src"}]
    assert all(link.startswith("#") for link in links)
    ids = [value for name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links} <= set(ids)
    assert "default-src 'none'" in page
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}


def test_words_are_text(tmp_path: Path):
    """Whatever a model, a team, an experiment or an error says."""
    match = replay(words=HOSTILE)
    match = msgspec.structs.replace(
        match,
        pairing=HOSTILE,
        teams={"team_a": HOSTILE, "team_b": HOSTILE},
        failure=HOSTILE,
        turns=tuple(msgspec.structs.replace(turn, event=HOSTILE) for turn in match.turns),
    )
    page = page_of(tmp_path, match, title=HOSTILE)
    reader = Reader(page)
    assert not {"script", "img"} & set(reader.tags)
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert reader.text.count("<script>alert(1)</script>") > 8
    assert not set("\u202e\x1b\udc80") & set(page)
    assert r"\u202e\x1b[31m \udc80" in reader.text


def test_seats_may_be_called_anything():
    """Their names are text in the plot, too."""
    match = msgspec.structs.replace(replay(), teams={"<b>&": "x"})
    turns = tuple(msgspec.structs.replace(t, scores={"<b>&": 1.0}) for t in match.turns)
    svg = ET.fromstring(score_svg(msgspec.structs.replace(match, turns=turns)))
    assert any("<b>&" in (text or "") for text in svg.itertext())


def test_the_score_starts_at_nothing_and_has_a_point_for_every_round():
    """One line per seat, told apart by more than colour."""
    svg = ET.fromstring(score_svg(replay(rounds=10)))
    lines = svg.findall("{http://www.w3.org/2000/svg}polyline")
    assert [len(line.get("points").split()) for line in lines] == [11, 11]
    assert len({line.get("stroke-dasharray") for line in lines}) == 2


def test_large_experiments_are_split(tmp_path: Path):
    """Into pages that link to their neighbours; a page has at least one match."""
    matches = [replay(n) for n in range(7)]
    one = len(page_of(tmp_path, matches[0]))
    files = write_replay(
        iter(matches), tmp_path / "a b.html", title="t", subtitle="s", largest=2 * one
    )
    assert [file.name for file in files][:3] == ["a b.html", "a b-2.html", "a b-3.html"]
    pages = [file.read_text() for file in files]
    assert all(len(page) < 4 * one for page in pages)
    assert [n for page in pages for n in re.findall(r'id="match-(\d+)"', page)] == list("0123456")
    assert 'href="a%20b-2.html"' in pages[0]
    assert 'href="a%20b.html"' in pages[1]
    assert 'href="a%20b-3.html"' in pages[1]
    tiny = write_replay(matches, tmp_path / "tiny.html", title="t", subtitle="s", largest=1)
    assert len(tiny) == 7
    many = write_replay(
        (replay(n, rounds=0) for n in range(1001)), tmp_path / "many.html", title="t", subtitle="s"
    )
    assert len(many) == 2


@pytest.mark.parametrize("rounds", [0, 1])
def test_matches_of_little(tmp_path: Path, rounds: int):
    """A match that failed at once, and an experiment without a match."""
    Reader(page_of(tmp_path, msgspec.structs.replace(replay(rounds=rounds), failure="gone")))
    assert "No match has ended yet" in Reader(page_of(tmp_path)).text
