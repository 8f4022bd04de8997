"""Files of samples: what they take up again, and what they refuse to touch."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from enginehouse.batch.prompt_files import PromptLine
from enginehouse.batch.sample_files import SampleLine, Source, sample_file
from enginehouse.core.errors import ConfigurationError, StoreError
from enginehouse.core.messages import TextPrompt
from enginehouse.core.sampler import SampleRequest
from enginehouse.store.layout import Layout

SOURCE = Source(model="tiny", engine="vllm", engine_version="1", weights="w" * 8)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Folders of this test's own."""
    return Layout(cache=tmp_path / "cache", state=tmp_path / "state", config=tmp_path / "config")


def sample(name: str | int, *, error: str | None = None) -> SampleLine:
    """A line."""
    known = {n: getattr(SOURCE, n) for n in Source.__struct_fields__}
    return SampleLine(id=name, digest=f"d{name}", texts=("a",), error=error, **known)


def prompt(name: str | int, *, digest: str | None = None) -> PromptLine:
    """A prompt."""
    request = SampleRequest(prompt=TextPrompt("a"))
    return PromptLine(id=name, request=request, digest=digest or f"d{name}")


def lines(*samples: SampleLine) -> bytes:
    """A file's content."""
    return b"".join(msgspec.json.encode(line) + b"\n" for line in samples)


def test_what_was_answered_is_not_asked_again(tmp_path: Path, layout: Layout):
    """Failed samples and a torn last line are taken out as soon as the asking begins.

    The torn line is kept beside the file.
    """
    path = tmp_path / "out.jsonl"
    before = lines(sample(1), sample(2, error="x"), sample("c")) + lines(sample(4))[:-9]
    path.write_bytes(before)
    with sample_file(path, layout=layout) as file:
        assert dict(file.answered) == {1: "d1", "c": "dc"}
        assert path.read_bytes() == before
        repair = file.begin()
        assert repair is not None
        assert repair.kept.read_bytes() == lines(sample(4))[:-9]
        assert path.read_bytes() == lines(sample(1), sample("c"))
        file.write(sample(2))
    assert path.read_bytes() == lines(sample(1), sample("c"), sample(2))
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_failed_samples_are_taken_out_of_the_file_behind_a_link(tmp_path: Path, layout: Layout):
    """The link stays one, and the file keeps its permissions."""
    path, behind = tmp_path / "out.jsonl", tmp_path / "behind.jsonl"
    behind.write_bytes(lines(sample(1), sample(2, error="x")))
    behind.chmod(0o640)
    path.symlink_to(behind)
    with sample_file(path, layout=layout) as file:
        file.begin()
    assert path.is_symlink()
    assert behind.read_bytes() == lines(sample(1))
    assert behind.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("end", range(9))
def test_any_torn_line_is_taken_for_torn(tmp_path: Path, layout: Layout, end: int):
    """Also the first one, of which only the beginning is there."""
    path = tmp_path / "out.jsonl"
    path.write_bytes(lines(sample(1))[:end])
    with sample_file(path, layout=layout) as file:
        assert not file.answered
        file.begin()
        file.write(sample(2))
    assert path.read_bytes() == lines(sample(2))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"Dear diary,\ntoday\n", 1),
        (b"Dear diary", 1),
        (b'{"prompt": "a"}\n', 1),
        (lines(sample(1)) + b"note to self\n", 2),
        (lines(sample(1)) + b"note to self", 2),
        (lines(sample(1), sample(2), sample(1)), 3),
        (lines(sample(1), sample(1, error="x")), 2),
    ],
)
def test_a_file_of_something_else_is_left_alone(
    tmp_path: Path, layout: Layout, content: bytes, line: int
):
    """Not a byte of it is changed; file and line are named."""
    path = tmp_path / "diary.txt"
    path.write_bytes(content)
    with pytest.raises(StoreError) as raised, sample_file(path, layout=layout):
        pass
    assert f"{path}, line {line} " in str(raised.value)
    assert path.read_bytes() == content


def test_other_prompts_are_refused(tmp_path: Path, layout: Layout):
    """Changed and removed ones; further ones, and failed ones that were corrected, are not."""
    path = tmp_path / "out.jsonl"
    path.write_bytes(lines(sample(1), sample(2, error="x")))
    with sample_file(path, layout=layout) as file:
        file.require_same_prompts([prompt(1), prompt(2, digest="corrected"), prompt(3)])
        with pytest.raises(ConfigurationError) as raised:
            file.require_same_prompts([prompt(1, digest="changed")])
        assert "of 1 " in str(raised.value)
        with pytest.raises(ConfigurationError) as raised:
            file.require_same_prompts([prompt(2)])
        assert "answer to 1," in str(raised.value)


def test_another_model_is_refused(tmp_path: Path, layout: Layout):
    """Also other weights of the same name; another version of the engine is not."""
    path = tmp_path / "out.jsonl"
    path.write_bytes(lines(sample(1)))
    replace = msgspec.structs.replace
    with sample_file(path, layout=layout) as file:
        file.require_same_source(replace(SOURCE, engine_version="2", weights=None))
        for name in ("model", "engine", "weights"):
            with pytest.raises(ConfigurationError) as raised:
                file.require_same_source(replace(SOURCE, **{name: "other"}))
            for part in (name, getattr(SOURCE, name), "other"):
                assert part in str(raised.value)


def test_one_writer_at_a_time(tmp_path: Path, layout: Layout):
    """Whatever name the file is given by."""
    path = tmp_path / "out.jsonl"
    (tmp_path / "link.jsonl").symlink_to(path)
    with sample_file(path, layout=layout) as file:
        file.begin()
        with (
            pytest.raises(StoreError),
            sample_file(tmp_path / "link.jsonl", layout=layout),
        ):
            pass
    with sample_file(path, layout=layout):
        pass


@pytest.mark.parametrize("path", ["/dev/full", "/dev", "nowhere/out.jsonl"])
def test_where_nothing_can_be_written(tmp_path: Path, layout: Layout, path: str):
    """A device, a folder, a folder that is not there."""
    with pytest.raises(StoreError), sample_file(tmp_path / path, layout=layout):
        pass
