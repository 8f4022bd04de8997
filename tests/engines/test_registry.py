"""What every engine of the registry must have; a new one that forgets a part fails here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from enginehouse import engines
from enginehouse.core.sampler import Capability
from enginehouse.engines.base import (
    Engine,
    RemoteEngine,
    ServedEngine,
    SupportsAdapters,
    SupportsDTypes,
    SupportsHistory,
    SupportsNodes,
    SupportsOwnCommand,
    SupportsQuirks,
    this_machine,
)
from enginehouse.engines.options import ServerOptions
from enginehouse.engines.own_command import OwnCommand
from enginehouse.engines.registry import (
    ENGINES,
    engine_variables,
    engines_that,
    hosted_engine,
    load_engine,
    own_command,
    problem_of,
)
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.plans import VARIANTS, pinned_version, pinned_versions

ROOM = Path(engines.__file__).parent
OWN_FILES = {
    "command_line.py",
    "diagnosis.py",
    "engine.py",
    "history.py",
    "installation.py",
    "wire.py",
}

ALL = [load_engine(name) for name in ENGINES.names()]
SERVED = [engine for engine in ALL if isinstance(engine, ServedEngine)]
ENGINE = pytest.mark.parametrize("engine", ALL, ids=[engine.name for engine in ALL])
# All but the generic one, which the user installs.
PROVISIONED = [engine for engine in SERVED if engine.model_format != "none"]
PROVISIONED_ENGINE = pytest.mark.parametrize(
    "engine", PROVISIONED, ids=[e.name for e in PROVISIONED]
)


def test_folders_and_registry_agree():
    """Each engine is one folder of its name, and there is no other folder."""
    folders = {path.name for path in ROOM.iterdir() if (path / "__init__.py").exists()}
    assert folders == set(ENGINES.names())


@ENGINE
def test_it_is_whole(engine: Engine):
    """It is either served or remote, says what it can do, and has a dialect for it."""
    assert isinstance(engine, ServedEngine) != isinstance(engine, RemoteEngine)
    supports = engine.capabilities(None).supports
    assert (Capability.CHAT in supports) == (engine.wire.chat is not None)
    assert (Capability.TEXT in supports) == (engine.wire.completions is not None)
    assert (Capability.TOKENIZE in supports) == (engine.wire.tokenizing is not None)
    if isinstance(engine, RemoteEngine):
        assert engine.default_url or engine.url_variables
        assert engine.key_variables or not engine.needs_key


def test_what_a_plug_in_lacks_is_listed():
    """Against the protocol that it comes nearer to, so that no served engine becomes remote."""

    def without(engine: Engine, *missing: str) -> type:
        kind = type(engine)
        members = {
            name: getattr(kind, name)
            for base in kind.__mro__
            for name in vars(base)
            if not name.startswith("_") and name not in missing
        }
        return type("Plugin", (), members)

    vllm, openai = load_engine("vllm"), load_engine("openai")
    assert problem_of("vllm", type(vllm)) is None
    assert problem_of("openai", type(openai)) is None
    assert problem_of("vllm", without(vllm, "check", "command")) == "lacks: check, command"
    assert "needs_key" in (problem_of("openai", without(openai, "needs_key")) or "")


def test_the_entry_point_has_the_engines_name():
    """Else its servers and runs could not be told from another's."""
    assert "vllm" in (problem_of("vlm", type(load_engine("vllm"))) or "")


@ENGINE
def test_adapters_are_declared_everywhere_or_nowhere(engine: Engine):
    """The capability, the endpoints and the flags that start a server for them."""
    declared = Capability.ADAPTERS in engine.capabilities(None).supports
    assert declared == (engine.wire.adapters is not None) == isinstance(engine, SupportsAdapters)
    if isinstance(engine, SupportsAdapters):
        assert list(engine.lora.ranks) == sorted(engine.lora.ranks)
        assert engine.lora.are_enabled(["server", engine.lora.enable[0]])


@ENGINE
def test_its_files(engine: Engine):
    """Each fact is in the file of the same name in every folder."""
    files = {path.name for path in (ROOM / engine.name).iterdir()}
    assert files >= (OWN_FILES if engine in PROVISIONED else {"engine.py"})
    assert ("quirks.py" in files) == isinstance(engine, SupportsQuirks)


@pytest.mark.parametrize("engine", SERVED, ids=[engine.name for engine in SERVED])
def test_its_own_command_is_what_launch_files_are_read_by(engine: ServedEngine):
    """Of the same flags, if any, as its class remembers; a command of its own is recognised."""
    command = own_command(engine.name)
    files = {path.name for path in (ROOM / engine.name).iterdir()}
    assert ("own_command.py" in files) == isinstance(engine, SupportsOwnCommand)
    if isinstance(engine, SupportsOwnCommand):
        assert command is engine.own_command
    else:
        assert command == OwnCommand()
    if isinstance(engine, SupportsHistory):
        assert command.removed_flags == engine.removed_flags
    assert (command.start is None) == (not command.program)
    if command.start is not None:
        assert command.start.match(" ".join(command.words("model", {})))
    assert {command.key_of(flag) for flag in command.flags.values()} == set(command.flags)
    assert set(command.spellings.values()) <= set(command.flags)
    assert command.by_user == (engine.model_format == "none")


def test_own_commands_are_found_without_the_engines_classes():
    """Whose import would take a tenth of a launch's time."""
    program = (
        "import sys; from enginehouse.engines.registry import engine_variables, own_command; "
        "own_command('vllm'), own_command('hf'), engine_variables(); print(*sys.modules)"
    )
    asked = [sys.executable, "-c", program]
    said = subprocess.run(asked, check=True, cwd=ROOM.parents[1], capture_output=True, text=True)
    imported = said.stdout.split()
    assert "enginehouse.engines.registry" in imported
    assert "enginehouse.engines.base" not in imported


def test_what_the_engines_are_asked():
    """By other rooms, which know none of them."""
    assert {"VLLM_", "SGLANG_", "GGML_"} <= set(engine_variables())
    assert engines_that(lambda engine: isinstance(engine, SupportsNodes)) == ("vllm",)
    assert hosted_engine("https://api.openai.com/v1") == "openai"
    assert hosted_engine("https://openrouter.ai/api/v1/chat/completions") == "openrouter"
    assert hosted_engine("http://127.0.0.1:8000") is hosted_engine("") is None


@PROVISIONED_ENGINE
def test_it_can_be_installed(engine: ServedEngine):
    """Under its own name, by a payload that is there, in a default version that is pinned."""
    installation = engine.installation
    assert installation.engine == engine.name
    assert installation.variables
    payload = getattr(installation, "describe_payload", None)
    assert payload is None or payload.is_file()
    pinned = [variant for variant in VARIANTS if pinned_versions(installation, variant)]
    assert pinned
    for variant in pinned:
        assert pinned_version(installation, installation.default_version, variant)
    assert set(installation.distributions) <= set(pinned)


@PROVISIONED_ENGINE
def test_its_log_can_be_read(engine: ServedEngine):
    """The profile has its name; it knows when the server is ready, and rules of its own."""
    profile = engine.log_profile
    assert profile.name == engine.name
    assert profile.rules
    assert profile.ready.pattern != r"(?!)"
    assert engine.name in profile.words.rebuild


@PROVISIONED_ENGINE
def test_it_is_started_with_what_is_asked(engine: ServedEngine, tmp_path: Path):
    """On this machine by default options, and on no port of its own choice."""
    assert isinstance(engine.unsuited(this_machine()), str | None)
    environment = EngineEnvironment(
        engine=engine.name,
        version=engine.installation.default_version,
        variant="cpu",
        executable=tmp_path / "bin/program",
        key=None,
        flags={},
    )
    engine.check(ServerOptions(), environment=environment)
    if isinstance(engine, SupportsQuirks):
        assert isinstance(engine.quirks(ServerOptions(), environment=environment), tuple)
    if isinstance(engine, SupportsDTypes):
        assert engine.dtypes.in_command(["server", engine.dtypes.flag, "float32"]) == "float32"
    assert engine.load_signal.parse("") is None


# Rooms below the engines describe wire formats and logs; facades speak other projects' words.
_MAY_NAME = re.compile(
    r"^(engines|facades|payloads|testing|diagnosis|dialects)/"
    r"|^tinker/(configuration|trainers/opening)\.py"  # kinds of trainers, called as engines are
    r"|^jobs/conversion\.py"  # another launcher's types of services, as in facades
)


def test_no_other_room_decides_by_an_engines_name():
    """A comparison with a name is a fact that belongs into that engine's folder."""
    name = rf"""["'](?:{"|".join(ENGINES.names())})["']"""
    decides = re.compile(rf"""(==|!=|\bin) ?\(?{name}|{name}: ?[{{"(\d]""")
    source = ROOM.parent
    found = [
        f"{path.relative_to(source)}: {line.strip()}"
        for path in source.rglob("*.py")
        if not _MAY_NAME.match(str(path.relative_to(source)))
        for line in path.read_text().splitlines()
        if decides.search(line)
    ]
    assert found == []
