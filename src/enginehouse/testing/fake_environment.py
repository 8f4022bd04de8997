"""A whole engine environment with the fake engine in it: what `--python` may point at in tests."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

_SOURCE = Path(__file__).resolve().parents[2]
_MODULES = {
    "vllm/__init__.py": "__version__ = {version!r}\n",
    "vllm/utils/__init__.py": "",
    "vllm/utils/argparse_utils.py": (
        "import argparse\n\n\nclass FlexibleArgumentParser(argparse.ArgumentParser):\n    pass\n"
    ),
    "vllm/entrypoints/__init__.py": "",
    "vllm/entrypoints/launchers/__init__.py": "",
    "vllm/entrypoints/launchers/cli_args.py": (
        "from enginehouse.testing.fake_engine.arguments import make_arg_parser\n"
    ),
    "vllm/entrypoints/openai/__init__.py": "",
    "vllm/entrypoints/openai/api_server.py": (
        "import sys\n\n"
        "from vllm import __version__\n"
        "from enginehouse.testing.fake_engine.server import main\n\n"
        'if __name__ == "__main__":\n'
        "    sys.exit(main(sys.argv[1:], version=__version__))\n"
    ),
}


def make_fake_environment(folder: Path, *, version: str = "0.32.0") -> Path:
    """Write a virtual environment into `folder` and return its bin/python.

    In it `import vllm` gives `version`, `python -m vllm.entrypoints.openai.api_server` is the fake
    engine, and vllm's argument parser lists the fake's flags. It shares the packages of the Python
    that runs this, and takes milliseconds to make. See fake_engine/behaviour.py for how to make
    its servers misbehave.
    """
    base = Path(getattr(sys, "_base_executable", sys.executable))
    packages = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    for name, source in _MODULES.items():
        file = packages / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source.replace("{version!r}", repr(version)), encoding="utf-8")
    paths = sysconfig.get_paths()
    shared = dict.fromkeys([str(_SOURCE), paths["purelib"], paths["platlib"]])
    (packages / "enginehouse.pth").write_text("\n".join(shared) + "\n", encoding="utf-8")
    (folder / "pyvenv.cfg").write_text(
        f"home = {base.parent}\ninclude-system-site-packages = false\n", encoding="utf-8"
    )
    python = folder / "bin" / "python"
    python.parent.mkdir(exist_ok=True)
    python.symlink_to(base)
    return python
