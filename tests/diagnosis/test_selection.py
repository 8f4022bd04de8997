"""Which of several things that a log says is the cause, and what the exit code adds."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.engine_logs import diagnose as diagnose_file

from enginehouse.diagnosis import Diagnosis, FailureKind, diagnose_log
from enginehouse.engines.sglang.engine import SglangEngine
from enginehouse.engines.vllm.engine import VllmEngine

K = FailureKind
HEAD = 'Traceback (most recent call last):\n  File "/a.py", line 1, in f\n    x'
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.02 GiB."
NCCL = "torch.distributed.DistBackendError: NCCL error in: a.cpp:1, unhandled system error"
LOST = "RuntimeError: [pair.cc:534] Connection closed by peer [10.0.0.7]:55102"
CORE = "(EngineCore pid=7) ERROR 11-21 04:30:17 [core.py:1510] "
DEAD = (
    "(APIServer pid=1) vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue."
)
READY = "INFO:     Application startup complete.\n"


@pytest.fixture
def diagnose(tmp_path: Path):
    """The diagnosis of a vLLM's log."""

    def found(text: str, exit_code: int | None = None) -> Diagnosis | None:
        log = tmp_path / "server.log"
        log.write_text(text)
        return diagnose_log(log, profile=VllmEngine().log_profile, exit_code=exit_code)

    return found


def traceback(prefix: str, exception: str, heading: str = "EngineCore failed to start.") -> str:
    """A logged traceback."""
    lines = [heading, *HEAD.splitlines(), *exception.splitlines()]
    return "".join(f"{prefix}{line}\n" for line in lines)


@pytest.mark.parametrize("exit_code", [-9, 137])
@pytest.mark.parametrize(
    "error", [OOM, NCCL, "Exception: odd", "RuntimeError: Error 802: system not yet initialized"]
)
def test_a_kill_is_believed_only_if_nothing_else_speaks(diagnose, exit_code: int, error: str):
    """Any error of any process that is not a pointer comes first."""
    assert diagnose(traceback(CORE, error), exit_code).kind is not K.KILLED
    assert diagnose(DEAD, exit_code).kind is K.KILLED
    assert diagnose(traceback(CORE, LOST), exit_code).kind is K.KILLED


def test_a_linkers_words_come_before_a_kill(diagnose):
    """Also where no exception follows."""
    assert diagnose("/usr/bin/ld: cannot find -lcuda\n", -9).kind is K.TOOLCHAIN


def test_the_most_specific_rule_decides_within_a_traceback(diagnose):
    """A missing library, not the kernels that could not be loaded without it."""
    text = (
        "ImportError: \n[sgl_kernel] CRITICAL: Could not load any common_ops library!\n"
        "- libnuma.so.1: cannot open shared object file"
    )
    assert diagnose(f"{HEAD}\n{text}\n").kind is K.MISSING_LIBRARY


def test_the_root_of_a_chain_counts(diagnose):
    """What no rule knows is shown by what was raised first, unless that has no words."""
    chain = "\n\nThe above exception was the direct cause of the following exception:\n\n"
    assert (
        diagnose(f"{HEAD}\nKeyError: 'a'{chain}{HEAD}\nRuntimeError: b\n").evidence
        == "KeyError: 'a'"
    )
    assert (
        diagnose(f"{HEAD}\nTimeoutError{chain}{HEAD}\nRuntimeError: b\n").evidence
        == "RuntimeError: b"
    )


@pytest.mark.parametrize(
    "survived",
    [
        f"Exception in thread Thread-3 (report):\n{HEAD}\n{OOM}\n",
        traceback("(EngineCore pid=7) WARNING 11-21 04:30:16 [a.py:1] ", OOM, "it failed"),
        traceback(
            "(EngineCore pid=7) ERROR 11-21 04:30:16 [a.py:1] ",
            OOM,
            "allocation failed, trying again",
        )
        + "(EngineCore pid=7) INFO 11-21 04:30:16 [b.py:1] loaded\n" * 3,
        traceback(CORE, OOM) + READY,
    ],
)
def test_what_was_survived_does_not_count(diagnose, survived: str):
    """A side thread, a warning, a process that went on, a server that became ready."""
    assert diagnose(survived + traceback(CORE, "KeyError: 'a'")).evidence == "KeyError: 'a'"


def test_what_was_survived_counts_if_nothing_else_does(diagnose):
    """It is the best guess then."""
    survived = f"Exception in thread Thread-3 (report):\n{HEAD}\n{OOM}\n"
    assert diagnose(survived).kind is K.OUT_OF_MEMORY


@pytest.mark.parametrize("consequence", [NCCL, LOST, "RuntimeError: Gloo connectFullMesh failed"])
def test_a_lost_connection_yields_to_another_process(diagnose, consequence: str):
    """Whichever is written first."""
    first = traceback("(Worker_TP0 pid=3) ERROR 11-21 04:30:17 [m.py:1] ", consequence)
    other = traceback("(Worker_TP1 pid=4) ERROR 11-21 04:30:18 [m.py:1] ", "KeyError: 'a'")
    assert diagnose(first + other).evidence == "KeyError: 'a'"
    assert diagnose(other + first).evidence == "KeyError: 'a'"
    assert diagnose(first).kind is K.COMMUNICATION


def test_what_native_code_said_explains_a_symptom(diagnose):
    """A failed build by its linker, lost kernels by the library that is missing."""
    build = traceback(CORE, "RuntimeError: Ninja build failed.")
    assert "compiling" in diagnose(build).cause
    assert "-lcuda" in diagnose("/usr/bin/ld: cannot find -lcuda\n" + build).evidence
    warning = (
        "WARNING 11-21 04:30:17 [c.py:1] Failed to import from vllm._C with "
        "ImportError('libcudart.so.12: cannot open shared object file')\n"
    )
    kernels = traceback(CORE, "AttributeError: '_OpNamespace' '_C' object has no attribute 'x'")
    assert diagnose(kernels).kind is K.WRONG_BUILD
    assert diagnose(warning + kernels).kind is K.MISSING_LIBRARY
    assert diagnose(warning + traceback(CORE, OOM)).kind is K.OUT_OF_MEMORY


def test_the_library_and_its_package_are_named(diagnose):
    """So that it can be installed."""
    found = diagnose(f"{HEAD}\nImportError: libnvrtc.so.12: cannot open shared object file\n")
    assert "nvidia-cuda-nvrtc for CUDA 12" in found.fix


def test_a_log_without_an_end_says_what_is_waited_for(diagnose):
    """At a start that takes too long, its last words are quoted."""
    line = (
        "INFO 04-01 02:51:10 ray_utils.py:214] Waiting for creating a placement group of specs "
        "for 310 seconds."
    )
    found = diagnose(line + "\n")
    assert found.kind is K.RAY_RESOURCES
    assert found.evidence.startswith("Waiting for creating")
    other = diagnose(
        "(APIServer pid=1) INFO 11-21 04:30:17 [u.py:1] Waiting for 1 remote engine to start.\n"
    )
    assert other.kind is K.WAITING
    assert "1 remote engine" in other.cause


def test_a_pointer_is_no_cause(diagnose):
    """With nothing else it is unknown: no killing is made up."""
    line = "RuntimeError: Engine core initialization failed. See root cause above. Failed: {}"
    assert diagnose(f"{HEAD}\n{line}\n").kind is K.UNKNOWN


def test_ranks_of_sglang_go_on(tmp_path: Path):
    """A rank that writes on after an error has survived it."""
    log = tmp_path / "server.log"
    log.write_text(
        "[2026-11-21 04:30:17 TP0] prefetch failed, falling back\n"
        f"[2026-11-21 04:30:17 TP0] {HEAD}\n{OOM}\n"
        "[2026-11-21 04:30:18 TP0] Load weight end.\n[2026-11-21 04:30:19 TP0] Capture begin.\n"
        f"[2026-11-21 04:30:31 TP0] Scheduler hit an exception: {HEAD}\nKeyError: 'a'\n"
    )
    found = diagnose_file(SglangEngine(), log)
    assert found is not None
    assert found.evidence == "KeyError: 'a'"


def test_an_interrupt_without_an_error_is_a_stop(diagnose):
    """SIGTERM and Ctrl-C end a process with an exception; beside another error it says nothing."""
    interrupt = HEAD + "\nKeyboardInterrupt: terminated\n"
    assert diagnose(interrupt).kind is K.STOPPED
    assert diagnose(interrupt + traceback(CORE, OOM)).kind is K.OUT_OF_MEMORY
    assert diagnose(DEAD + "\n" + interrupt).kind is not K.STOPPED


@pytest.mark.parametrize("exit_code", [143, -15, 130])
def test_a_signal_to_stop_in_the_exit_code(diagnose, exit_code: int):
    """Nothing else is said."""
    assert diagnose(READY, exit_code).kind is K.STOPPED


def test_a_shutdown_in_good_order_is_a_stop(diagnose):
    """Only where no error was written, and the exit code is no other."""
    shutdown = "INFO:     Shutting down\nINFO:     Waiting for application shutdown.\n"
    assert diagnose(READY + shutdown).kind is K.STOPPED
    assert diagnose(READY + shutdown, 1) is None
    assert diagnose(READY + traceback(CORE, OOM) + shutdown).kind is K.OUT_OF_MEMORY


def test_an_engine_that_others_call_dead_died_while_serving(diagnose):
    """Where nothing says of what."""
    assert diagnose(DEAD).kind is K.ENGINE_DIED
    start = "RuntimeError: Engine core initialization failed. See root cause above.\n"
    assert diagnose(start).kind is K.UNKNOWN


def test_a_worker_that_dies_while_requests_are_answered_was_killed(diagnose):
    """It wrote nothing; without an answer before, its error may be above the excerpt."""
    died = "ERROR 05-01 10:00:00 [multiproc_executor.py:1] Worker proc W-1 died unexpectedly\n"
    answered = 'INFO:     127.0.0.1:4 - "GET /health HTTP/1.1" 200 OK\n'
    assert diagnose(answered + died).kind is K.KILLED
    assert diagnose(died).kind is K.UNKNOWN


def test_a_log_that_ends_where_processes_meet_shows_a_hang(diagnose):
    """Its last line is that of a meeting; one more line, and they met."""
    meeting = "INFO 05-01 10:00:00 [pynccl.py:70] vLLM is using nccl==2.27.3\n"
    assert diagnose(meeting).kind is K.WAITING
    assert diagnose(meeting + "INFO 05-01 10:00:00 [loader.py:1] loading\n") is None


def test_the_heading_of_a_traceback_that_was_cut_off(diagnose):
    """It says what is missing below."""
    prefix = "ERROR 05-01 10:00:00 multiproc_worker_utils.py:226] "
    heading = "Exception in worker W while processing method init_device: NCCL error: unhandled"
    assert diagnose(prefix + heading + ", " + HEAD).kind is K.COMMUNICATION


def test_an_error_in_words_goes_on_behind_the_tag_of_its_process(diagnose):
    """Lines without a level or a place, as a process prints them."""
    first = "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig"
    second = "  Value error, User-specified max_model_len (9000) is greater than the derived "
    second += "max_model_len (max_position_embeddings=4096.0 or model_max_length=None)"
    lines = [first, second]
    text = "".join(f"(APIServer pid=1) {line}\n" for line in lines)
    assert diagnose(text).kind is K.CONTEXT_TOO_LONG
    assert diagnose(text.replace("(APIServer pid=1)   ", "(Other pid=2)   ")).kind is K.WRONG_VALUE


def test_lines_of_another_engine_are_not_the_silence_of_this_one(diagnose):
    """They come after the report of a death."""
    died = "RuntimeError: Engine core initialization failed. See root cause above.\n"
    working = "(EngineCore_0 pid=7) INFO 05-01 10:00:00 [core.py:1] loading\n"
    assert diagnose(working + died).kind is K.KILLED
    assert diagnose(died + working).kind is K.UNKNOWN


def test_a_message_that_was_broken_in_two(diagnose):
    """The second half goes on in the middle of a sentence."""
    first = "ValueError: Free memory on device cuda:0 (36.75/121.63 GiB) on startup is less than"
    second = "desired GPU memory utilization (0.85, 103.38 GiB)."
    assert diagnose(f"{first}\n{second}\n").kind is K.MEMORY_TAKEN
    assert diagnose(f"{first}\nsrv: {second}\n").kind is K.UNKNOWN


def test_an_error_beside_the_report_of_a_death_is_its_cause(diagnose):
    """Quoted or with its traceback, though errors of single requests look like it."""
    dead = "CRITICAL 03-04 18:03:21 launcher.py:99] MQLLMEngine is already dead, terminating\n"
    place = "ERROR 03-04 18:03:21 engine.py:136] "
    error = "ValueError('no room for 576 placeholders')"
    traced = traceback(place, "ValueError: no room for 576 placeholders", heading=error)
    for log in (dead + traced, traced + dead, f"{place}{error}\n{dead}"):
        diagnosis = diagnose(READY + log)
        assert diagnosis.kind is K.ENGINE_DIED
        assert "576 placeholders" in diagnosis.evidence
    many = "INFO 03-04 18:03:22 metrics.py:1] idle\n" * 20
    assert "576" not in diagnose(READY + traced + many + dead).evidence
    of_a_request = traceback(place, "ValueError: 576", heading="Exception in ASGI application")
    assert "576" not in diagnose(READY + of_a_request + dead).evidence


def test_an_unknown_error_after_answers_ended_an_engine_that_served(diagnose):
    """Where the log begins later than it; the answer to a question about its state is none."""
    error = traceback(CORE, "AssertionError", heading="EngineCore encountered a fatal error.")
    answer = 'INFO:     127.0.0.1:4 - "{} HTTP/1.1" 200 OK\n'
    assert diagnose(answer.format("POST /v1/completions") + error).kind is K.ENGINE_DIED
    assert diagnose(answer.format("GET /health") + error).kind is K.UNKNOWN


def test_native_code_that_faulted_explains_a_silent_worker(diagnose):
    """Its words have no level, and only others report the end."""
    fault = (
        "Memory access fault by GPU node-3 (Agent handle: 0x2) on address 0x7. Reason: Unknown.\n"
    )
    gone = traceback(CORE, "RuntimeError: Executor failed.")
    working = "(Worker_TP0 pid=8) INFO 05-01 10:00:00 [core.py:1] loading\n"
    assert diagnose(working + fault + gone).kind is K.CRASHED
    assert diagnose(working + gone).kind is K.KILLED


def test_advice_at_the_end_of_a_long_remark_does_not_make_it_a_survived_one(diagnose):
    """Ray's words about memory end with advice about retries."""
    remark = "Refer to the documentation on how to address the out of memory issue: https://x."
    advice = " Consider provisioning more memory on this node or requesting more CPUs per task."
    assert diagnose(remark + advice + " " * 60 + "Set it to enable retry.\n").kind is K.HOST_MEMORY
    assert diagnose("retrying, see " + remark + "\n") is None


def test_a_validation_error_about_an_architecture_points_to_the_error_before(diagnose):
    """Its own first line is only a count."""
    before = traceback(
        "(APIServer pid=1) ERROR 05-06 18:20:14 [registry.py:866] ",
        "ValueError: invalid literal for int() with base 10: 'MIG-5a1e'",
        heading="Error in inspecting model architecture 'LlamaForCausalLM'",
    )
    count = "(APIServer pid=1) pydantic_core._pydantic_core.ValidationError: 1 validation error\n"
    says = "(APIServer pid=1)   Value error, Model architectures ['L'] failed to be inspected.\n"
    assert diagnose(before + count + says).kind is K.CUDA_NOT_READY


def test_a_shutdown_in_good_order_after_failed_requests(diagnose):
    """An error of a request does not turn the end into a failure; one of the engine does."""
    answer = '(APIServer pid=1) INFO:     1.1.1.1:4 - "POST /v1/completions HTTP/1.1" 200 OK\n'
    request = "(APIServer pid=1) ERROR 11-21 04:30:17 [serving.py:1] "
    refused = traceback(request, "ValueError: no image", heading="Error in preprocessing prompt")
    leaving = "(APIServer pid=1) INFO:     Shutting down\n"
    assert diagnose(READY + answer + refused + leaving).kind is K.STOPPED
    failed = traceback(CORE, "IndexError: list index out of range")
    assert diagnose(READY + answer + failed + leaving).kind is K.ENGINE_DIED
    exits = traceback("(EngineCore pid=7) ", "SystemExit", heading="Process EngineCore_DP0:")
    assert diagnose(READY + answer + exits + leaving).kind is K.STOPPED


def test_killed_in_a_prompt_is_no_report_of_a_death(diagnose):
    """Requests are still answered after it."""
    prompt = "INFO 11-21 04:30:17 [logger.py:1] Received request: prompt: 'why\nKilled\n?'\n"
    answer = 'INFO:     1.1.1.1:4 - "POST /v1/completions HTTP/1.1" 200 OK\n'
    alive = diagnose(READY + prompt + answer)
    assert alive is None or alive.kind is not K.KILLED
    assert diagnose(READY + answer + "Killed\n").kind is K.KILLED


@pytest.mark.parametrize(
    ("report", "kind"),
    [
        ("fish: Job 1, 'vllm serve' terminated by signal SIGSEGV (Address error)", K.CRASHED),
        ("fish: Job 1, 'vllm serve' terminated by signal SIGKILL (Forced quit)", K.KILLED),
        ("mpirun noticed that process rank 0 on node a exited on signal 11 (Segmentation fault).",
         K.CRASHED),
        (("a.ChildFailedError: \n===\nvllm FAILED\n[1]:\nexitcode  : -15 (pid: 5)\n"
         "Root Cause (first observed failure):\nexitcode  : -9 (pid: 6)"), K.KILLED),
        (("Mar 04 05:06:19 box systemd[1]: vllm.service: start operation timed out. Terminating.\n"
         "Mar 04 05:06:19 box systemd[1]: vllm.service: Main process exited, code=killed, "
         "status=15/TERM"), K.TOO_SLOW),
        (("Mar 04 05:06:19 box systemd[1]: vllm.service: Main process exited, code=killed, "
         "status=15/TERM"), K.STOPPED),
        ("[n1:411] *** Process received signal ***\n[n1:411] Signal: Segmentation fault (11)",
         K.CRASHED),
        ("srun: error: n1: task 0: Segmentation fault (core dumped)", K.CRASHED),
        ("srun: error: n1: task 0: Killed", K.KILLED),
        ("ProcessExitedException: process 0 terminated with signal SIGSEGV", K.CRASHED),
        ("ProcessExitedException: process 0 terminated with signal SIGKILL", K.KILLED),
        ("Container vllm failed liveness probe, will be restarted", K.TOO_SLOW),
    ],
)  # fmt: skip
def test_what_wrappers_say_of_the_end(diagnose, report: str, kind: FailureKind):
    """Shells, mpirun, torchrun, systemd, Kubernetes; an error of the engine comes first."""
    assert diagnose(report + "\n").kind is kind
    assert diagnose(traceback(CORE, OOM) + report + "\n").kind is K.OUT_OF_MEMORY


def test_an_error_long_before_the_last_answers_ended_nothing(diagnose):
    """Even one that may end a server, if it is the API server's or nobody's."""
    answer = 'INFO:     1.1.1.1:4 - "POST /v1/completions HTTP/1.1" 200 OK\n'
    full = "ERROR 11-21 04:30:17 [serving.py:1] OSError: [Errno 28] No space left on device\n"
    assert diagnose(READY + answer + full).kind is K.DISK_FULL
    assert diagnose(READY + full + 20 * answer) is None
    engine = traceback(CORE, OOM, heading="EngineCore encountered a fatal error.")
    assert diagnose(READY + engine + 20 * answer).kind is K.OUT_OF_MEMORY


# What native code writes last, without a prefix and without a traceback.
NATIVE = [
    ("CUDA error (/w/hopper/flash_fwd_launch_template.h:188): invalid argument", K.CRASHED),
    ("CUDA error (/w/hopper/flash_fwd_launch_template.h:188): out of memory", K.OUT_OF_MEMORY),
    ("CUDA error (/w/flash_fwd.h:9): no kernel image is available for execution", K.CUDA_MISMATCH),
    ("CUDA error: invalid argument at /w/csrc/attention/kernel.cu:77", K.CRASHED),
    ("cudaMemcpyAsync failed: invalid argument", K.CRASHED),
    ("cudaStreamSynchronize(stream) failed with error unspecified launch failure", K.CRASHED),
    ("cudaMalloc failed: out of memory", K.OUT_OF_MEMORY),
    ("HIP error: invalid argument", K.CRASHED),
    ("HIP error (/src/ck/fmha_fwd.hpp:99): invalid configuration argument", K.CRASHED),
    ("HIP error: out of memory", K.OUT_OF_MEMORY),
    (("terminate called after throwing an instance of 'c10::Error'\n"
     "  what():  CUDA error: an illegal memory access was encountered"), K.CRASHED),
    (("terminate called after throwing an instance of 'std::bad_alloc'\n"
     "  what():  std::bad_alloc"), K.HOST_MEMORY),
    (("terminate called after throwing an instance of 'std::system_error'\n"
     "  what():  Resource temporarily unavailable"), K.HOST_MEMORY),
    (("terminate called after throwing an instance of 'c10::DistBackendError'\n"
     "  what():  [Rank 1] Process group watchdog thread terminated with exception: NCCL error"),
     K.COMMUNICATION),
    ("Got cutlass error: Error Internal at: 263", K.CRASHED),
    ("cuBLAS API failed with status 15", K.CRASHED),
    ("CUBLAS_STATUS_INVALID_VALUE", K.CRASHED),
    ("GPUassert: invalid argument /w/kernel.cu 44", K.CRASHED),
    ("Failed: Cuda error /workspace/csrc/custom_all_reduce.cuh:368 'invalid argument'",
     K.COMMUNICATION),
    ("Failed: Cuda error /workspace/csrc/mm.cu:368 'invalid argument'", K.CRASHED),
    ("[FT][ERROR] CUDA runtime error: invalid argument /w/cuda_utils.h:274", K.CRASHED),
    ("/w/ggml/src/ggml-cuda/ggml-cuda.cu:77: CUDA error", K.CRASHED),
    ("LLVM ERROR: Cannot select: intrinsic %llvm.nvvm.shfl", K.CRASHED),
    ('!!!!!!! Segfault encountered !!!!!!!\n  File "<unknown>", line 0, in cuMemcpy', K.CRASHED),
    ("malloc(): corrupted top size", K.CRASHED),
    ("IndexKernel.cu:92: block: [0,0,0] Assertion `index out of bounds` failed.", K.CRASHED),
    ("NVRM: Xid (PCI:0000:81:00): 79, pid=7, GPU has fallen off the bus.", K.CRASHED),
    ("Error an illegal memory access at line 119 in file /w/csrc/ops.cu", K.CRASHED),
    ("mmap: Cannot allocate memory", K.HOST_MEMORY),
    ("mmap: falling back to read", K.KILLED),
    ("using cuBLAS error handling", K.KILLED),
    ("If you see a CUDA error (for instance invalid argument), report it", K.KILLED),
    (f"{CORE.replace('ERROR', 'INFO')}cudaMemcpy failed over to the copy engine", K.KILLED),
]  # fmt: skip


@pytest.mark.parametrize(("said", "kind"), NATIVE)
def test_silence_is_a_kill_only_after_no_native_error(diagnose, said: str, kind: FailureKind):
    """While starting and while requests are answered."""
    working = "(EngineCore pid=7) INFO 05-01 10:00:00 [core.py:1] loading\n"
    failed = "RuntimeError: Engine core initialization failed. See root cause above."
    assert diagnose(f"{working}{said}\n(APIServer pid=1) {failed}\n").kind is kind
    answer = 'INFO:     1.1.1.1:4 - "POST /v1/completions HTTP/1.1" 200 OK\n'
    lost = (
        f"{CORE}Worker proc VllmWorker-3 died unexpectedly, shutting down executor.\n"
        f"{CORE}EngineCore encountered a fatal error.\n{CORE}RuntimeError: cancelled\n{DEAD}\n"
    )
    assert diagnose(f"{READY}{answer}{working}{said}\n{lost}").kind is kind


def test_a_crash_ends_the_stack_of_another_one(diagnose):
    """Banner and frames are repeated by each process that crashes; none has a prefix."""
    frames = '  File "<unknown>", line 0, in Py_RunMain\n'
    banner = "!!!!!!! Segfault encountered !!!!!!!\n"
    assert diagnose(f"{frames}\n{banner}{frames}").kind is K.CRASHED
    assert diagnose(f"{frames}\nSegfault handlers are installed\n{frames}") is None


def test_a_message_behind_a_prefix_that_was_broken_in_a_word(diagnose):
    """Only its first line has the prefix; a line of its own does not go on."""
    first = (
        "(EngineCore pid=3) ValueError: To serve at least one request with the model's max seq "
        "len (100000), (4.26 GiB KV cach"
    )
    second = "e is needed, which is larger than the available KV cache memory (4.25 GiB)."
    begun = "".join(f"(EngineCore pid=3) {line}\n" for line in HEAD.splitlines())
    assert diagnose(f"{begun}{first}\n{second}\n").kind is K.CONTEXT_EXCEEDS_MEMORY
    assert diagnose(f"{begun}{first}\nE{second}\n").kind is K.UNKNOWN


def test_a_refused_option_is_no_heading_of_the_next_traceback(diagnose):
    """A script that waited for the server fails right after it."""
    refused = "vllm: error: unrecognized arguments: --config a.yaml\n"
    waited = f"{HEAD}\nSystemExit: the server did not come up\n"
    assert diagnose(refused + waited).kind is K.UNKNOWN_FLAG
    assert diagnose("loading the configuration\n" + waited).kind is not K.UNKNOWN_FLAG


def test_an_engine_called_dead_died_with_the_error_that_is_written(diagnose):
    """Also where the log begins after the last answer."""
    error = traceback(CORE, "RuntimeError: shape mismatch: [1] and [2]", heading="")
    dead = "CRITICAL 11-26 13:20:09 launcher.py:99] MQLLMEngine is already dead, terminating"
    assert diagnose(f"{dead} server process\n{error}").kind is K.ENGINE_DIED
    assert diagnose(error).kind is K.UNKNOWN
