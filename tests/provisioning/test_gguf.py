from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec
import pytest

from enginehouse.core.errors import ModelError
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.gguf import CONVERTER_VERSION, converted_checkpoint
from enginehouse.provisioning.programs import PAYLOADS
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout

CONVERTER = f"""#!{sys.executable}
import json, pathlib, sys
_, payload, source, target = sys.argv
assert payload.endswith("convert_gguf.py")
content = pathlib.Path(source).read_bytes()
if b"broken" in content:
    sys.exit("ValueError: GGUF model with architecture x is not supported yet.")
(pathlib.Path(target) / "config.json").write_text(json.dumps({{"model_type": "llama"}}))
print("some noise")
print(json.dumps({{"parameters": 1, "architecture": "llama", "seconds": 0.1}}))
"""


@pytest.fixture
def environment(tmp_path: Path) -> EngineEnvironment:
    """An environment whose "Python" stands in for the conversion, which needs torch."""
    python = tmp_path / "python"
    python.write_text(CONVERTER)
    python.chmod(0o755)
    packages = dict.fromkeys(("torch", "transformers", "gguf", "accelerate"), "1.0")
    return EngineEnvironment(
        engine="vllm",
        version="0.32.0",
        variant="cpu",
        executable=python,
        key=None,
        flags={},
        packages=packages,
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Something that begins as a GGUF file does."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF and more")
    return path


async def test_a_file_is_converted_once(
    file: Path, environment: EngineEnvironment, layout: Layout, notes: list[str]
):
    """The checkpoint is kept by the file's content, whatever the file is called."""
    folder = await converted_checkpoint(
        file, environment=environment, context=Context(layout=layout, notify=notes.append)
    )
    assert folder.is_relative_to(layout.models)
    assert (folder / "config.json").exists()
    assert "llama" in notes[-1]
    environment.executable.unlink()
    again = await converted_checkpoint(
        file, environment=environment, context=Context(layout=layout, notify=notes.append)
    )
    assert again == folder
    assert "converted before" in notes[-1]


async def test_other_content_or_another_transformers_is_converted_anew(
    file: Path, environment: EngineEnvironment, layout: Layout, notes: list[str]
):
    """Two conversions that may differ never share a folder."""

    async def convert(environment: EngineEnvironment) -> Path:
        return await converted_checkpoint(
            file, environment=environment, context=Context(layout=layout, notify=notes.append)
        )

    first = await convert(environment)
    newer = msgspec.structs.replace(
        environment, packages={**environment.packages, "transformers": "2.0"}
    )
    second = await convert(newer)
    _rewrite(file, b"GGUF and other content")
    third = await convert(environment)
    assert len({first, second, third}) == 3


async def test_two_at_once_convert_once(
    file: Path, environment: EngineEnvironment, layout: Layout, notes: list[str]
):
    """The second waits for the first and takes its result."""
    both = await asyncio.gather(
        *(
            converted_checkpoint(
                file, environment=environment, context=Context(layout=layout, notify=notes.append)
            )
            for _ in range(2)
        )
    )
    assert both[0] == both[1]
    assert sum("converting" in note and "log" in note for note in notes) == 1


async def test_a_failed_conversion_leaves_nothing(
    file: Path, environment: EngineEnvironment, layout: Layout, notes: list[str]
):
    """The error has transformers' own reason and the log; nothing half-made is found later."""
    _rewrite(file, b"GGUF broken")
    with pytest.raises(ModelError, match="architecture x is not supported") as caught:
        await converted_checkpoint(
            file, environment=environment, context=Context(layout=layout, notify=notes.append)
        )
    assert caught.value.log is not None
    assert [path.name for path in layout.models.iterdir() if path.name[0] != "."] == []


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.gguf", b"version https://git-lfs", "not a GGUF file"),
        ("x.gguf", b"", "not a GGUF file"),
        ("x-00001-of-00003.gguf", b"GGUF", "one part of a split"),
    ],
)
async def test_what_cannot_be_converted_is_refused_first(
    name: str,
    content: bytes,
    expected: str,
    tmp_path: Path,
    environment: EngineEnvironment,
    layout: Layout,
):
    """A file that is no whole GGUF file is refused before any program is started."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ModelError, match=expected):
        await converted_checkpoint(
            path, environment=environment, context=Context(layout=layout, notify=lambda _: None)
        )


async def test_an_environment_that_lacks_packages_is_told(
    file: Path, environment: EngineEnvironment, layout: Layout
):
    """Nothing is installed into somebody else's environment; what is missing is named."""
    bare = msgspec.structs.replace(environment, packages={"torch": "1", "transformers": "1"})
    with pytest.raises(ModelError, match="gguf, accelerate"):
        await converted_checkpoint(
            file, environment=bare, context=Context(layout=layout, notify=lambda _: None)
        )


def _rewrite(file: Path, content: bytes) -> None:
    file.unlink()
    file.write_bytes(content)


def test_the_payload_and_its_cache_agree_on_the_version():
    """A change of the converter makes earlier conversions stale."""
    assert f"\nVERSION = {CONVERTER_VERSION}\n" in (PAYLOADS / "convert_gguf.py").read_text()
