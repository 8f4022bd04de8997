"""The page with a curve: whole in one file, readable for everybody, nothing smuggled in."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from tests.support.made_curves import made_curve

from enginehouse.report.curve_page import curve_page

NAMES = tuple(f"checkpoint-{100 * n}" for n in range(1, 8))
_VOID = {"meta", "link", "br", "img", "input", "hr"}


class Reader(HTMLParser):
    """A page's elements, its text, and whether every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note it."""
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in _VOID:
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
        self.text.append(data)


def test_the_page_needs_nothing_else():
    """No script, no link, no picture, no address; light and dark."""
    page = curve_page(made_curve(NAMES, failed=("checkpoint-300",)))
    found = Reader(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert not [n for n, _ in found.attributes if n in {"href", "src"} or n.startswith("on")]
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in page
    assert "url(" not in page
    assert "prefers-color-scheme: dark" in page


def test_every_task_has_its_plots_and_a_table():
    """Score, difference from the base, from the best; ids are unique in the page."""
    page = curve_page(made_curve(NAMES, tasks=("gsm8k", "sums")))
    plots = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    titles = [next(iter(plot)).text for plot in plots]
    assert titles == [
        f"{task}: {what}"
        for task in ("gsm8k", "sums")
        for what in ("score by step", "difference from org/tiny", "difference from the best so far")
    ]
    ids = [value for name, value in Reader(page).attributes if name == "id"]
    assert len(ids) == len(set(ids)) == 12
    assert page.count("<tr>") == 2 * (1 + 1 + len(NAMES))
    assert page.count('<th scope="row">checkpoint-700') == 2


def test_a_failure_is_there_with_its_reason():
    """As a cross in the plots and as a row of the table."""
    page = curve_page(made_curve(NAMES, failed=("checkpoint-300",), tasks=("sums",)))
    assert page.count("<title>checkpoint-300: it holds NaN") == 3
    assert re.search(r'<td colspan="6" class="failure">it holds NaN', page)
    assert "1 could not be evaluated" in page


@pytest.mark.parametrize("name", ['<script>alert("1")</script>', "a&b", "']]>--><b>"])
def test_names_are_text(name: str):
    """Whatever a folder, a task or an error is called."""
    page = curve_page(made_curve((name, "step-2"), failed=("step-2",), tasks=(name,), why=name))
    found = Reader(page)
    assert "script" not in found.tags
    assert "b" not in found.tags
    assert any(name in text for text in found.text)


@pytest.mark.parametrize(
    ("names", "failed", "base"),
    [
        ((), (), True),
        ((), (), False),
        (("step-1",), ("step-1",), False),
        (("step-1",), (), False),
        (("warm", "step-1", "final"), (), True),
    ],
)
def test_pages_of_little(names: tuple[str, ...], failed: tuple[str, ...], base: bool):  # noqa: FBT001
    """Nothing yet, only a failure, no base, names without numbers."""
    curve = made_curve(names, failed=failed, base=base)
    page = curve_page(curve)
    Reader(page)
    for name in names:
        assert name in page
    assert page == curve_page(curve)
