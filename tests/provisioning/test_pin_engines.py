"""tools/pin_engines.py, as far as it works without a registry."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[2] / "tools/pin_engines.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The tool as a module."""
    spec = importlib.util.spec_from_file_location("pin_engines", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pin_engines"] = module  # its dataclass looks for it there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("marker", "kept"),
    [
        ("sys_platform == 'linux'", ""),
        ("sys_platform == 'win32'", None),
        ("platform_machine == 's390x'", None),
        (
            "platform_machine == 'x86_64' and sys_platform == 'linux'",
            "platform_machine == 'x86_64'",
        ),
        ("python_full_version == '3.11.*'", "python_full_version < '3.12'"),
        (
            "python_full_version >= '3.13' or sys_platform == 'darwin'",
            "python_full_version >= '3.13'",
        ),
        ("python_version == '3.12'", "python_version == '3.12'"),
    ],
)
def test_a_marker_says_only_what_matters_here(tool: ModuleType, marker: str, kept: str | None):
    """On Linux, on the two machines, on the Pythons that the files are for."""
    assert tool.narrow(marker) == kept


def test_every_file_that_linux_may_install_has_its_hash(tool: ModuleType):
    """Other systems' wheels do not count; a wheel of the stable ABI does, and the source."""
    names = (
        *(
            "numpy-2.0-cp311-cp311-manylinux_2_28_x86_64.whl",
            "numpy-2.0-cp314-cp314-manylinux_2_28_aarch64.whl",
        ),
        *("numpy-2.0-cp38-abi3-manylinux2014_x86_64.whl", "numpy-2.0-py3-none-any.whl"),
        *("numpy-2.0-cp310-cp310-manylinux_2_28_x86_64.whl", "numpy-2.0-cp311-cp311-win_amd64.whl"),
        *(
            "numpy-2.0-cp311-cp311-macosx_11_0_arm64.whl",
            "numpy-2.0-cp311-cp311-musllinux_1_2_x86_64.whl",
        ),
    )
    files = [
        {"url": f"there/{name}", "hashes": {"sha256": str(number)}}
        for number, name in enumerate(names)
    ]
    package = {"name": "numpy", "version": "2.0", "wheels": files}
    package["sdist"] = {"url": "there/numpy-2.0.tar.gz", "hashes": {"sha256": "9"}}
    hashes = [f"    --hash=sha256:{number}" for number in (0, 1, 2, 3, 9)]
    assert tool.lines_of(package) == [" \\\n".join(["numpy==2.0", *hashes])]


def test_torchs_cpu_build_has_none(tool: ModuleType):
    """Which file it is depends on where the user's machine gets it."""
    wheel = {
        "url": "file:///wheels/torch-2.13.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl",
        "hashes": {"sha256": "0"},
    }
    package = {"name": "torch", "version": "2.13.0+cpu", "wheels": [wheel]}
    assert tool.lines_of(package) == ["torch==2.13.0+cpu"]


def test_what_is_pinned_stays(tool: ModuleType):
    """The file's versions become constraints, on the machines that it is for."""
    text = (
        "# comment\na==1 \\\n    --hash=sha256:0\n"
        "b==2 ; python_full_version < '3.12' \\\n    --hash=sha256:1\n"
    )
    ours = "(platform_machine == 'x86_64' or platform_machine == 'aarch64')"
    assert list(tool.constraints_of(text)) == [
        f"a==1 ; {ours}\n",
        f"b==2 ; {ours} and (python_full_version < '3.12')\n",
    ]
