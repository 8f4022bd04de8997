"""The programs for SGLang's Python, run by ours with a stand-in for the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from enginehouse.provisioning.programs import PAYLOADS

STAND_IN = {
    "torch/__init__.py": "class version: cuda, hip = '13.0', None",
    "sglang/__init__.py": "__version__ = '0.5.23'",
    "sglang/srt/__init__.py": "",
    "sglang/srt/plugins.py": "def load_plugins(): print('plugins')",
    "sglang/srt/utils.py": "def kill_process_tree(pid, *, include_parent): print('killed')",
    "sglang/srt/server_args.py": """
        import logging, types
        class ServerArgs:
            @staticmethod
            def add_cli_args(parser):
                parser.add_argument("--model-path", "--model", required=True)
                parser.add_argument("--dtype", choices={"half", "auto"})
                parser.add_argument("--enable-metrics", action="store_true")
                parser.add_argument("--old", action="store_true", help="(Deprecated, use --new)")
        def prepare_server_args(argv):
            logging.basicConfig(level="INFO", format="[now] %(message)s", force=True)
            return types.SimpleNamespace(argv=argv, api_key=None, admin_api_key=None)
        """,
    "sglang/launch_server.py": """
        import json, logging, os
        def run_server(args):
            logging.getLogger("sglang.engine").info(f"server_args={vars(args)}")
            with open("/proc/self/cmdline") as file:
                seen = file.read()
            print(json.dumps(vars(args) | {"seen": seen, "environ": dict(os.environ)}))
            if args.api_key == "fail":
                raise RuntimeError("no GPU")
        """,
}


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder with the stand-in, to be imported from."""
    for name, text in STAND_IN.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    return tmp_path


def run(
    program: str, *arguments: str, packages: Path, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a payload as a server's environment would."""
    return subprocess.run(
        [sys.executable, PAYLOADS / program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.defpath, "PYTHONPATH": str(packages), "PYTHONSAFEPATH": "1"} | env,
    )


def test_the_key_is_handed_over_unseen(packages: Path):
    """It is in no process list, no variable of a child and no line of the log."""
    result = run(
        "serve_sglang.py",
        *("--model-path", "/m"),
        packages=packages,
        SGLANG_SERVER_API_KEY="s3cret",
    )
    assert result.returncode == 0, result.stderr
    plugins, said, killed = result.stdout.splitlines()
    assert (plugins, killed) == ("plugins", "killed")
    served = json.loads(said)
    assert served["api_key"] == "s3cret"
    assert served["argv"] == ["--model-path", "/m"]
    assert served["admin_api_key"] is None
    assert "s3cret" not in served["seen"]
    assert "s3cret" not in served["environ"].values()
    assert "'api_key': '***'" in result.stderr


def test_what_changes_the_server_takes_the_administrative_key(packages: Path):
    """It is as hidden as the other one."""
    result = run(
        "serve_sglang.py",
        packages=packages,
        SGLANG_SERVER_API_KEY="s3cret",
        SGLANG_SERVER_ADMIN_KEY="adm1n",
    )
    served = json.loads(result.stdout.splitlines()[1])
    assert served["admin_api_key"] == "adm1n"
    assert "adm1n" not in result.stderr
    assert "adm1n" not in served["environ"].values()
    assert "'admin_api_key': '***'" in result.stderr


def test_a_failure_ends_the_whole_tree(packages: Path):
    """Its children are ended, and the error is the log's last word."""
    result = run("serve_sglang.py", packages=packages, SGLANG_SERVER_API_KEY="fail")
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == "killed"
    assert result.stderr.splitlines()[-1] == "RuntimeError: no GPU"


def test_the_description_has_version_variant_and_flags(packages: Path):
    """The last line is one JSON object, with every spelling of every flag."""
    result = run("describe_sglang.py", packages=packages, PYTHONSAFEPATH="")
    assert result.returncode == 0, result.stderr
    described = json.loads(result.stdout.splitlines()[-1])
    assert (described["version"], described["variant"]) == ("0.5.23", "cuda")
    flags = described["flags"]
    assert flags["--model"] == flags["--model-path"] == {"takes_value": True}
    assert flags["--dtype"] == {"takes_value": True, "choices": ["auto", "half"]}
    assert flags["--enable-metrics"] == {"takes_value": False}
    assert flags["--old"]["deprecated"] is True
    again = run("describe_sglang.py", described["identity"], packages=packages, PYTHONSAFEPATH="")
    assert json.loads(again.stdout.splitlines()[-1])["flags"] is None
