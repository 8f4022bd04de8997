"""Compilers, linkers and headers that kernels are compiled with."""

from __future__ import annotations

from enginehouse.diagnosis.kinds import FailureKind
from enginehouse.diagnosis.rule import Rule

K = FailureKind


RULES = (
    Rule(
        K.TOOLCHAIN,
        r"ptxas fatal\s{0,4}: (?:Value '(?P<gpu>sm_\w{1,8})' is not defined|(?P<what>.{0,120}))",
        "the ptxas that compiles the kernels is older than this GPU ({gpu}{what})",
        "let Triton use a newer one: --env TRITON_PTXAS_PATH=/usr/local/cuda/bin/ptxas of a CUDA "
        "that knows the GPU; or a newer build of {engine}",
        spoken=True,
    ),
    Rule(
        K.TOOLCHAIN,
        r"nvcc fatal\s{0,4}: (?:Unsupported gpu architecture '(?P<gpu>\w{1,20})'"
        r"|(?P<what>.{0,160}))",
        "the nvcc that compiles the kernels is older than this GPU or than the host's compiler "
        "({gpu}{what})",
        "install a CUDA toolkit that knows the GPU and set CUDA_HOME to it (and PATH, so that its "
        "nvcc comes first)",
        spoken=True,
    ),
    Rule(
        K.TOOLCHAIN,
        r"(?:ld(?:\.\w{2,5})?|collect2)\S{0,3} .{0,40}(?:cannot|unable to) find (?:library )?-l"
        r"(?P<library>[\w.+\-]{1,40})|(?:ld(?:\.\w{2,5})?): cannot find "
        r"-l(?P<other>[\w.+\-]{1,40})",
        "the linker does not find lib{library}{other}.so when kernels are compiled",
        "for -lcuda: put libcuda.so where the linker looks (a link to libcuda.so.1 of the driver, "
        "or LIBRARY_PATH=/usr/local/cuda/lib64/stubs); for -lcudart and others install the CUDA "
        "toolkit and set CUDA_HOME",
        spoken=True,
    ),
    Rule(
        K.TOOLCHAIN,
        r"unsupported GNU version|unsupported (?:Microsoft Visual Studio|clang) version",
        "the C++ compiler is newer than the CUDA toolkit's nvcc knows",
        "install an older g++ and name it (CC, CXX, NVCC_PREPEND_FLAGS='-ccbin g++-12'), or a "
        "newer "
        "CUDA toolkit",
        spoken=True,
    ),
    Rule(
        K.TOOLCHAIN,
        r"NVCC version[^\n]{0,40}(?:>=|at least|should be)"
        r"|detected CUDA version \([\d.]{1,8}\) mismatches"
        r"|CUDA version[^\n]{0,60}does not match[^\n]"
        r"{0,60}(?:compile|PyTorch|torch)|nvcc[^\n]{0,20} [\d.]{2,6}[^\n]{0,20}(?:is too old"
        r"|is not "
        r"supported)|requires (?:nvcc|CUDA(?: toolkit)?)[^\n]{0,20}>= ?1\d",
        "the CUDA toolkit that compiles the kernels does not fit torch or the GPU",
        "install the toolkit of the CUDA that torch was built with, and set CUDA_HOME to it",
    ),
    Rule(
        K.NO_COMPILER,
        r"Failed to find C(?:\+\+)? compiler|No working C\+\+ compiler|InvalidCxxCompiler"
        r"|No such file or directory: '(?:[\w./\-]{0,80}/)?(?:gcc|g\+\+|cc|c\+\+|clang(?:\+\+)?"
        r"|ninja"
        r"|nvcc)'|fatal error: Python\.h: No such file|Python\.h(?:: No such| not found)"
        r"|(?:gcc|g\+\+|cc1plus|c\+\+|ninja): (?:command )?not found"
        r"|Ninja is required to load C\+\+|cc1plus['\"]?: No such file|ninja executable not found",
        "compiling the model's kernels takes a C/C++ compiler (and Python's headers, and ninja), "
        "which this machine lacks",
        "install one (apt-get install g++ ninja-build, python3-dev for Python.h), or do without "
        "compiling: --enforce-eager",
        spoken=True,
    ),
    Rule(
        K.NO_COMPILER,
        r"Could not find nvcc|nvcc: (?:command )?not found"
        r"|CUDA_HOME (?:environment variable )?is not "
        r"set|nvcc (?:was |is )?not found|/bin/nvcc[^\n]{0,40}(?:No such file|not found|doesn't "
        r"exist)|(?:Could not|Unable to|cannot) find (?:CUDA|nvcc|cuda)(?: toolkit| home|_HOME)"
        r"|default cuda_home=[^\n]{0,60}doesn't exist",
        "compiling kernels for this GPU takes CUDA's nvcc and a C++ compiler, which it lacks",
        "install the CUDA toolkit and g++, and set CUDA_HOME; or choose an attention backend that "
        "compiles nothing",
    ),
    Rule(
        K.TOOLCHAIN,
        r"fatal error: (?P<header>[\w./+\-]{1,80}\.(?:h|hpp|cuh|hxx)): No such file",
        "a header that the kernels are compiled with is missing: {header}",
        "install the CUDA toolkit as a whole (its development packages), and set CUDA_HOME to it; "
        "if "
        "it is one of the compiler's own (stddef.h), install gcc and g++ again",
        spoken=True,
    ),
    Rule(
        K.HOST_MEMORY,
        r"fatal error: Killed signal terminated program|(?:nvcc|cicc|cc1plus|ptxas)[^\n]{0,40}"
        r"(?:died due to signal 9|Killed)|virtual memory exhausted",
        "the machine's memory ran out while kernels were compiled",
        "let fewer compile at once: --env MAX_JOBS=2 (and --env FLASHINFER_NVCC_THREADS=1), or "
        "give the machine more memory",
        spoken=True,
    ),
    Rule(
        K.TOOLCHAIN,
        r"Ninja build failed|triton\.compiler\.errors\.\w{1,60}|ninja: build stopped"
        r"|Error building extension|Internal Triton PTX "
        r"codegen error|PTXASError|PassManager::run failed|CppCompileError|C\+\+ compile error"
        r"|collect2: error: ld returned|CalledProcessError: Command [^\n]{0,200}(?:gcc|g\+\+|cc"
        r"|nvcc|"
        r"ninja|clang|ptxas)\b[^\n]{0,3000}returned non-zero"
        r"|\bnvcc[^\n]{0,200}returned non-zero exit status",
        "compiling kernels for this GPU failed",
        "the compiler's own words are a few lines above; most often nvcc, g++ or a header is "
        "missing or of another version. --enforce-eager does without torch.compile",
        vague=True,
        spoken=True,
    ),
)
