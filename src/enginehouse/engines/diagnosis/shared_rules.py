"""What torch, CUDA, NCCL, compilers, the loader, the hub and the disk say: rules for every engine.

Their order is that of how specific they are: within one traceback the first that fits decides, so a
missing library comes before the kernels that could not be loaded without it. The texts are those of
many versions; each rule has a log in tests/engines that it must know, and one that it must not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from enginehouse.engines.diagnosis.kinds import FailureKind
from enginehouse.engines.diagnosis.rule import Rule, Surroundings, groups

K = FailureKind
_SIZE = r"[\d.]{1,12} [KMGT]?i?B(?:ytes)?"
_PACKAGES = (
    ("libnuma.so", "the system's package libnuma1 (numactl-libs on Fedora)"),
    ("libGL.so", "the system's package libgl1"),
    ("libgomp.so", "the system's package libgomp1"),
    ("libsndfile.so", "the system's package libsndfile1"),
    ("libibverbs.so", "the system's package libibverbs1"),
    ("librdmacm.so", "the system's package librdmacm1"),
    ("libtcmalloc", "the system's package libtcmalloc-minimal4"),
    ("libmpi.so", "the system's package libopenmpi3 (or libopenmpi40)"),
    ("libstdc++.so", "the system's package libstdc++6"),
    ("libpython3", "the system's package of the same name (libpython3.X)"),
    ("libcudart.so", "the Python package nvidia-cuda-runtime"),
    ("libnvrtc", "the Python package nvidia-cuda-nvrtc"),
    ("libcublas", "the Python package nvidia-cublas"),
    ("libcudnn", "the Python package nvidia-cudnn"),
    ("libcusparseLt", "the Python package nvidia-cusparselt"),
    ("libcusparse.so", "the Python package nvidia-cusparse"),
    ("libcusolver", "the Python package nvidia-cusolver"),
    ("libcufft", "the Python package nvidia-cufft"),
    ("libcurand", "the Python package nvidia-curand"),
    ("libcufile", "the Python package nvidia-cufile"),
    ("libcupti", "the Python package nvidia-cuda-cupti"),
    ("libnvJitLink", "the Python package nvidia-nvjitlink"),
    ("libnvToolsExt", "the Python package nvidia-nvtx"),
    ("libnccl", "the Python package nvidia-nccl"),
    ("libnvshmem", "the Python package nvidia-nvshmem"),
)
_OF_TORCH = ("libtorch", "libc10", "libshm.so")


def _library(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    name = found["library"]
    if folder := _folder_with(name, around.packages):
        fix = f"let the loader look there, too: --env LD_LIBRARY_PATH={folder}"
        return {"library": name, "where": f"; the environment has it in {folder}", "fix": fix}
    package = next((text for start, text in _PACKAGES if name.startswith(start)), None)
    again = f"make the environment again: {around.rebuild}"
    if name.startswith(("libcuda.so", "libnvidia-")):
        fix = "install NVIDIA's driver; in a container, start it with --gpus all"
    elif name.startswith(_OF_TORCH):
        package = "torch"
        fix = f"the environment is not whole, or made for another machine: {again}"
    elif package is not None:
        fix = f"install {package}{_suffix(package, name)}, or {again}"
    else:
        fix = f"install the system's package that has it, or {again}"
    where = f"; it belongs to {package}" if package else ""
    return {"library": name, "where": where, "fix": fix}


def _suffix(package: str, library: str) -> str:
    """The CUDA version that a library's own version gives away, for the package's name."""
    major = re.search(r"\.so\.(1[1-9])\b", library)
    if not package.startswith("the Python package nvidia-cu") or major is None:
        return ""
    return f" for CUDA {major[1]}"


def _folder_with(library: str, packages: Path | None) -> Path | None:
    """The folder of an environment that has a library; the loader looks in none of them."""
    if packages is None:
        return None
    places = ("nvidia/*/lib", "nvidia/*/lib64", "*/lib", "*.libs", "../..", "../../../lib")
    for place in places:
        for found in packages.glob(f"{place}/{library}"):
            return found.parent.resolve()
    return None


def _driver(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:  # noqa: ARG001
    version = int(found["found"] or 0)  # 12080 is 12.8
    return {"found": f" (CUDA {version // 1000}.{version % 1000 // 10})" if version else ""}


def _cuda_memory(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    # In a container the engine itself may be listed as such a process, by its number outside.
    said = found.string[found.start() :]
    others = re.search(rf"Process \d+ has {_SIZE}", said) and "this process has" in said
    free = re.search(rf"total capacity of ({_SIZE}) of which ({_SIZE}) is free", said)
    wanted = found["wanted"]
    return dict(groups(found, around)) | {
        "wanted": f": {wanted} more was wanted" if wanted else "",
        "free": f", and {free[2]} of {free[1]} was free" if free else "",
        "fix": "another process holds memory of that GPU: `nvidia-smi` lists it; end it, or choose "
        "another GPU with CUDA_VISIBLE_DEVICES"
        if others
        else around.less_gpu_memory,
    }


def _host_memory(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:  # noqa: ARG001
    wanted = found["wanted"]
    return {"wanted": f" when {int(wanted) / 2**30:.1f} GiB more was wanted" if wanted else ""}


def _library_of_any(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    name = found["library"] or found["loader"] or found["dyld"] or found["other"]
    first = re.search(r"(?P<library>.+)", name)
    assert first is not None
    return _library(first, around)


def _divisible(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    said = dict(groups(found, around))
    return said | {"size": said["size"] or "this many"}


def _without_torch(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    return {name: value.replace("torch.", "") for name, value in groups(found, around).items()}


def _capabilities(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    said = groups(found, around)
    return {n: f"{int(v) / 10:.1f}" if v.isdigit() else v for n, v in said.items()}  # 89 is 8.9


def _missing_package(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    name = found["name"].partition(".")[0]
    return {"name": found["name"], "package": name, "rebuild": around.rebuild}


def _rebuild(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    return dict(groups(found, around)) | {"rebuild": around.rebuild}


def _without_gpu(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    return dict(groups(found, around)) | {"without": around.without_gpu}


_COMMAND_LINE = (
    Rule(
        K.UNKNOWN_FLAG,
        r"error: unrecognized arguments: [^\n]{0,300}?(?P<flag>--?[A-Za-z][^\s=]{0,80})",
        "this version of {engine} has no {flag} (any more)",
        "correct it or leave it out; the engine's own --help lists the flags that it has",
    ),
    Rule(
        K.WRONG_VALUE,
        r"error: argument (?P<flag>[^:\n]{1,300}): (?P<problem>.{0,600})",
        "{engine} refuses what {flag} was given: {problem}",
        "correct the value, or leave {flag} out",
    ),
    Rule(
        K.WRONG_VALUE,
        r"error: the following arguments are required: (?P<flag>.{1,200})",
        "{engine} cannot start without {flag}",
        "add what is missing to the command line",
    ),
    Rule(
        K.UNKNOWN_FLAG,
        r"(?:EngineArgs|ServerArgs|LLM|AsyncEngineArgs|EngineConfig)\.?(?:__init__)?\(\) got an "
        r"unexpected keyword argument '(?P<flag>\w+)'",
        "this version of {engine} has no option {flag} (any more)",
        "correct it or leave it out",
    ),
)
_DISK = (
    Rule(
        K.HOST_MEMORY,
        r"Too many open files|\[Errno 11\] Resource temporarily unavailable|can't start new thread"
        r"|pthread_create failed",
        "the process may open no more files, or start no more processes (`ulimit -n`, `ulimit -u`)",
        "raise the limits before it is started: `ulimit -n 65535; ulimit -u unlimited` (docker: "
        "--ulimit nofile=65535, --pids-limit -1)",
        spoken=True,
        late=True,
    ),
    Rule(
        K.DISK_FULL,
        r"(?:shared memory|/dev/shm|[Bb]us error|\bshm\b).{0,200}(?:No space left on device|"
        r"insufficient shared memory|out of shared memory)"
        r"|insufficient shared memory \(shm\)|increas\w+ (?:the )?(?:docker )?shared memory"
        r"|unable to (?:open|allocate|resize|write to) (?:a )?shared memory (?:file|segment|object)"
        r"|Error while (?:creating|attaching to) shared memory segment|ftruncate.{0,60}nccl"
        r"|ncclShmOpen"
        r"|object_store_memory.{0,80}(?:/dev/shm|exceeds)"
        r"|No space left on device.{0,20}/dev/shm|/dev/shm.{0,60}too small",
        "the shared memory (/dev/shm), through which the engine's processes talk, is too small or "
        "full",
        "see `df -h /dev/shm`; in a container start it with a larger --shm-size (10g or more) or "
        "with --ipc=host; on Kubernetes mount a volume of medium Memory there",
        spoken=True,
        late=True,
    ),
    Rule(
        K.DISK_FULL,
        r"No space left on device|Disk quota exceeded|not enough free disk space"
        r"|Not enough disk space|database or disk is full",
        "a disk is full, or /dev/shm, through which the engine's processes talk",
        "see `df -h /dev/shm /tmp ~`; make room (in a container: a larger --shm-size)",
        late=True,
    ),
    Rule(
        K.NOT_WRITABLE,
        r"(?:PermissionError|OSError|IOError|filesystem error|cannot create directory)\b"
        r".{0,120}?(?:\[Errno 13\] |\[Errno 30\] |\[Errno 1\] )?"
        r"(?:Permission denied|Read-only file system|Operation not permitted)"
        r"(?:.{0,20}['\"\[](?P<path>/[^'\"\]]{1,300}))?"
        r"|(?:is|are) not writable|could not create (?:the )?(?:cache )?(?:directory|folder)"
        r"|mkdir.{0,80}(?:Permission denied|Read-only file system)",
        "a folder or file cannot be read or written by the user that the engine runs as: {path}",
        "give that user the rights, or name other folders: HF_HOME for models, VLLM_CACHE_ROOT, "
        "TRITON_CACHE_DIR, XDG_CACHE_HOME and HOME for compiled kernels, TMPDIR for the rest",
    ),
    Rule(
        K.NOT_WRITABLE,
        r"no locator available for file|unable to open database file",
        "a package wants to keep a cache beside itself or in the home folder, and may not",
        "name a folder that can be written: HOME, NUMBA_CACHE_DIR, OUTLINES_CACHE_DIR, "
        "XDG_CACHE_HOME",
    ),
    Rule(
        K.NOT_WRITABLE,
        r"getpwuid\(\): uid not found: (?P<uid>\d+)",
        "the engine runs as a user without a name or a home ({uid}), and cannot tell where its "
        "caches belong",
        "set HOME, USER and TORCHINDUCTOR_CACHE_DIR to something that exists and can be written",
    ),
    Rule(
        K.WRONG_VALUE,
        r"AF_UNIX path too long|ipc path [^\n]{0,300}is longer than",
        "the path of a socket is longer than the system allows (107 characters)",
        "name a shorter folder: --env TMPDIR=/tmp, for vLLM --env VLLM_RPC_BASE_PATH=/tmp",
    ),
)
_PORTS = (
    Rule(
        K.PORT_TAKEN,
        r"(?:server socket has failed to (?:listen|bind)|TCPStore|EADDRINUSE|"
        r"DistNetworkError|MASTER_PORT).{0,300}?(?:port: ?(?P<port>\d{2,5})|"
        r"[Aa]ddress already in use|EADDRINUSE)"
        r"|ZMQError: Address already in use(?: \(addr='(?P<zmq>[^']{1,100})'\))?"
        r"|failed to (?:start|bind).{0,60}(?:gcs|raylet|redis|dashboard).{0,100}address already"
        r"|Error binding to (?P<bind>[\w.:\[\]/*]{1,80}).{0,40}[Aa]ddress already in use",
        "a port that the engine's own processes need among themselves is taken {port}{zmq}{bind}; "
        "it is not the one of --port",
        "end what is left of an earlier start (`ss -ltnp` names it), or let the engine take other "
        "ports: VLLM_PORT, MASTER_PORT, or --nccl-port and --dist-init-addr of SGLang",
    ),
    Rule(
        K.PORT_TAKEN,
        r"[Aa]ddress already in use|EADDRINUSE|[Pp]ort (?P<port>\d{2,5}) is (?:already in use"
        r"|not available)"
        r"|Only one usage of each socket address",
        "another program listens on the port {port}",
        "leave --port out, so that a free one is leased, or end that program: `ss -ltnp` names it",
    ),
    Rule(
        K.WRONG_VALUE,
        r"[Cc]annot assign requested address|Errno 99\]|could not bind.{0,80}not available",
        "the address of --host is not one of this machine's",
        "use 127.0.0.1 or 0.0.0.0, or an address that `ip addr` lists",
    ),
    Rule(
        K.WRONG_VALUE,
        r"\[Errno 13\] .{0,60}bind on address",
        "a port below 1024 takes the rights of root",
        "use a larger port number",
    ),
)
_LIBRARIES = (
    Rule(
        K.MISSING_LIBRARY,
        r"Failed to import from \w+\.\w+ with "
        r".{0,120}?(?P<library>lib[\w.+\-]{1,60}\.so[\w.]{0,20})"
        r": cannot open shared object file",
        "a shared library that {engine}'s compiled part needs is not found: {library}{where}",
        "{fix}",
        _library,
        spoken=True,
    ),
    Rule(
        K.WRONG_LIBRARY,
        r"Failed to import from \w+\.\w+ with .{0,300}?(?:undefined symbol: (?P<symbol>\w{1,120})"
        r"|version [`'](?P<version>(?:GLIBC|GLIBCXX|CXXABI)_[\d.]{1,12})' not found)",
        "the compiled part of {engine} does not fit the torch or the system that it is loaded into "
        "({symbol}{version})",
        "install {engine} and torch together, from one source ({rebuild}); for GLIBC this system "
        "is too old: use a newer one or a container",
        _rebuild,
        spoken=True,
    ),
    Rule(
        K.MISSING_LIBRARY,
        r"(?P<library>lib[\w.+\-]{1,60}\.so[\w.]{0,20}): (?:cannot open shared object file"
        r"|cannot enable executable stack)"
        r"|error while loading shared libraries: (?P<loader>[^:\n]{1,100}):"
        r"|Library not loaded: (?:@rpath/)?(?P<dyld>[^\s]{1,120})"
        r"|(?:Could not load|Unable to (?:load|open)|cannot load)[^\n]{0,60}?"
        r"(?P<other>lib[\w.+\-]{1,60}\.so[\w.]{0,20})",
        "a shared library is not found: {library}{where}",
        "{fix}",
        _library_of_any,
    ),
    Rule(
        K.WRONG_LIBRARY,
        r"version [`'](?P<version>(?:GLIBC|GLIBCXX|CXXABI)_[\d.]{1,12})' not found",
        "a library of this system is older than the one that this build was made with ({version})",
        "unset LD_LIBRARY_PATH; if it stays, this system is too old (or a conda environment brings "
        "an old libstdc++): use a newer one or a container",
        spoken=True,
    ),
    Rule(
        K.WRONG_LIBRARY,
        r"undefined symbol: (?P<symbol>\w{1,120})",
        "a compiled extension or a shared library was made for another version of what it is "
        "loaded into, mostly torch: it misses {symbol}",
        "unset LD_LIBRARY_PATH, or take the system's CUDA out of it; otherwise install the "
        "extension again for the torch that is there ({rebuild})",
        _rebuild,
    ),
    Rule(
        K.WRONG_LIBRARY,
        r"DLL load failed",
        "a compiled extension does not load on Windows: a DLL is missing or of another version",
        "use WSL or Linux; vLLM and SGLang are not made for Windows",
    ),
)
_PACKAGE_RULES = (
    Rule(
        K.PACKAGE_MISMATCH,
        r"all_special_tokens_extended|Tokenizer class (?P<class>\w+) does not exist or is not "
        r"currently imported|TokenizersBackend",
        "the transformers that is installed does not fit {engine} or the model's tokenizer "
        "{class}: one of them is made for version 4, the other for 5",
        "install the version that {engine} asks for (before its 0.13 or so: transformers<5; a "
        "checkpoint saved by version 5 needs 5), or build the environment again ({rebuild})",
        _rebuild,
    ),
    Rule(
        K.PACKAGE_MISMATCH,
        r"`?rope_(?:scaling|parameters)`?(?:'s)? .{0,60}(?:must|should|field)|rope_scaling should "
        r"have|KeyError: '(?:rope_type|rope_theta|rope_scaling|rope_parameters)'"
        r"|has no attribute '?(?:rope_theta|rope_scaling|rope_parameters)|Unknown RoPE scaling type"
        r"|Unrecognized keys in `rope_",
        "the model's configuration of RoPE is of another version of transformers than the one that "
        "is installed",
        "install the transformers that the model's config.json names (transformers_version), or "
        "correct its rope_scaling with --hf-overrides",
    ),
    Rule(
        K.PACKAGE_MISMATCH,
        r"data did not match any variant of untagged enum|Converting from Tiktoken failed"
        r"|expected value of type .{0,40}tokenizers",
        "the tokenizer's file was written by a newer tokenizers or transformers than the one that "
        "is "
        "installed",
        "install a newer tokenizers and transformers, or take tokenizer.json from the base model",
    ),
    Rule(
        K.PACKAGE_MISMATCH,
        r"compiled using NumPy 1\.x cannot be run|numpy\.dtype size changed|_ARRAY_API not found"
        r"|`?np\.\w{1,20}`? was (?:removed|deprecated) in (?:the )?NumPy",
        "NumPy does not fit a package that was compiled or written for another version of it",
        "install the NumPy that the environment asks for (mostly numpy<2), or build it again: "
        "{rebuild}",
        _rebuild,
    ),
    Rule(
        K.WRONG_BUILD,
        r"operator torchvision::nms does not exist|torch and torchvision (?:were|are) compiled"
        r"|PyTorch and torchvision (?:were|was) compiled with different CUDA",
        "torchvision does not fit the torch in this environment: a CUDA build and a CPU build "
        "were mixed, or two versions",
        "make the environment again ({rebuild}; `enginehouse envs` names it, `enginehouse envs "
        "remove KEY` removes it); install nothing into it that brings a torch of its own",
        _rebuild,
    ),
    Rule(
        K.WRONG_BUILD,
        r"Distributed package doesn't have NCCL|without NCCL support",
        "this build of torch has no NCCL: it is one for CPUs, or for Windows",
        "install the CUDA build of torch, with {engine} from one source: {rebuild}",
        _rebuild,
    ),
    Rule(
        K.WRONG_BUILD,
        r"(?P<package>flashinfer[_-]python|sglang-kernel|sgl-kernel) (?:is installed with version "
        r"(?P<is>[^\s,]{1,30}), which is less than|with) (?:the )?minimum required version "
        r"(?P<least>[\w.]{0,30}\w)",
        "{package} {is} does not fit this {engine}, which needs {least}",
        "make the environment again: {rebuild}; install nothing into it",
        _rebuild,
    ),
    Rule(
        K.PACKAGE_MISMATCH,
        r"flashinfer-(?:cubin|jit-cache) version \([^)]{0,40}\) does not match"
        r"|(?:requires|but) [\w.\-]{1,40}[<>=!~]{1,2}[\w.,<>=!~ ]{1,60}(?:is required|, (?:but"
        r"|found))"
        r"|VersionConflict|is required for a normal functioning of this module"
        r"|This version of \w+ requires|is incompatible with (?:the installed )?\w+ version",
        "two packages in the environment do not fit each other",
        "install the versions that the line names, or build the environment again: {rebuild}",
        _rebuild,
    ),
    Rule(
        K.PACKAGE_MISMATCH,
        r"StrictDataclass\w{0,20}ValidationError|Descriptors cannot (?:not )?be created directly"
        r"|Version mismatch: The cluster was started with|got multiple values for argument"
        r"|PydanticUserError|PydanticSchemaGenerationError|pydantic-core version"
        r"|No module named '(?P<module>(?:vllm|sglang|torch|triton)\.[a-z][\w.]{1,80})'",
        "two packages in the environment are of versions that do not fit each other {module}",
        "install the versions that {engine} asks for, or build the environment again: {rebuild}",
        _rebuild,
    ),
    Rule(
        K.PACKAGE_MISMATCH,
        r"cannot import name '(?P<what>[^']{1,80})' from (?:partially initialized module "
        r")?'(?P<name>[\w.]{1,120})'",
        "{name} has no {what}: it is of another version than the one that this was written for",
        "install the version of it that {engine} asks for, or build the environment again: "
        "{rebuild}",
        _rebuild,
    ),
)
_TOOLCHAIN = (
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
        r"Could not find nvcc|nvcc: (?:command )?not found|CUDA_HOME environment variable is not "
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
        r"Ninja build failed|ninja: build stopped|Error building extension|Internal Triton PTX "
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
_CUDA = (
    Rule(
        K.CUDA_NOT_READY,
        r"\b802\b[^\n]{0,60}system not yet initialized|system not yet initialized"
        r"|CUDA_ERROR_SYSTEM_NOT_READY|cudaErrorSystemNotReady",
        "the GPUs are not ready (CUDA error 802): on machines with NVSwitch NVIDIA's fabric "
        "manager "
        "does not run, or is of another version than the driver",
        "`systemctl status nvidia-fabricmanager`; install it in the version of the driver, start "
        "it, and start again; on a rented machine this is for its provider to fix",
        spoken=True,
    ),
    Rule(
        K.CUDA_MISMATCH,
        r"unsupported display driver ?/ ?cuda driver combination|\bError 803\b"
        r"|[Dd]river/library version mismatch|NVMLError_LibRmVersionMismatch",
        "the loaded kernel driver and libcuda are of different versions (CUDA error 803): the "
        "driver was updated without a restart, or a container brings a libcuda of its own",
        "restart the machine; in a container take the compat libcuda out of LD_LIBRARY_PATH "
        "(/usr/local/cuda/compat), so that the driver's own is used",
        spoken=True,
    ),
    Rule(
        K.CUDA_MISMATCH,
        r"driver on your system is too old(?: \(found version (?P<found>\d{1,6})\))?"
        r"|(?P<none>driver version is insufficient|PTX was compiled with an unsupported toolchain"
        r"|forward compatibility was attempted|provided PTX was compiled with"
        r"|cudaErrorInsufficientDriver|cudaErrorUnsupportedPtxVersion)",
        "NVIDIA's driver{found} is too old for the CUDA that this build was made with, or was "
        "replaced while it was in use",
        "`nvidia-smi` shows the newest CUDA that the driver can do; update the driver (restart the "
        "machine after it), or use a build for that CUDA with --python PATH",
        _driver,
        spoken=True,
    ),
    Rule(
        K.CUDA_MISMATCH,
        r"no kernel image is available|named symbol not found|hipErrorNoBinaryForGpu"
        r"|invalid device function|device kernel image is invalid"
        r"|\[sgl_kernel\] CRITICAL: Could not load any common_ops library",
        "this build of {engine} or torch has no code for this GPU, or was made for another CUDA: "
        "the GPU is older or newer than it",
        "use another GPU, or a build for this one with --python PATH; or make the environment "
        "again: {rebuild}",
        _rebuild,
    ),
    Rule(
        K.CUDA_MISMATCH,
        r"CUDA capability sm_\d+ is not compatible",
        "this build of torch has no code for this GPU: the GPU is older or newer than it",
        "use another GPU, or a build for this one with --python PATH",
        spoken=True,
    ),
    Rule(
        K.CUDA_NOT_READY,
        r"invalid literal for int\(\) with base 10: '(?P<device>(?:GPU|MIG)-[\w\-/]{1,80})'"
        r"|CUDA_VISIBLE_DEVICES[^\n]{0,80}(?P<uuid>(?:GPU|MIG)-[\w\-/]{1,80})[^\n]{0,80}not"
        r"|(?:Invalid|Unknown|unsupported) (?:GPU|device) (?:UUID|id)[^\n]{0,40}"
        r"(?P<other>(?:GPU|MIG)-[\w\-/]{1,80})",
        "CUDA_VISIBLE_DEVICES names the GPU by its UUID ({device}{uuid}{other}), and this {engine} "
        "wants a number",
        "use the numbers that `nvidia-smi -L` shows (CUDA_VISIBLE_DEVICES=0,1), or a version that "
        "takes UUIDs; for MIG give the process one slice only",
    ),
    Rule(
        K.CUDA_NOT_READY,
        r"CUDA-capable devices are busy or unavailable",
        "the GPU is held by another process alone (exclusive mode), or was left so by one that "
        "died",
        "`nvidia-smi` lists processes and the compute mode; end what holds it, or `nvidia-smi -c "
        "0`",
    ),
    Rule(
        K.CUDA_NOT_READY,
        r"CUDA unknown error|failed to initialize CUDA: (?:unknown|init)"
        r"|CUDA driver initialization failed|CUDA error: initialization error"
        r"|NVMLError_InvalidArgument",
        "CUDA cannot be initialised: the driver's modules are not loaded as they should be, a GPU "
        "is named that is not there, or the process was forked after it had used CUDA",
        "see that `nvidia-smi` works and CUDA_VISIBLE_DEVICES is right; `modprobe nvidia_uvm` or a "
        "restart often helps; in a container, --gpus all",
        vague=True,
        spoken=True,
    ),
    Rule(
        K.UNSUPPORTED_FEATURE,
        r"CUDA driver error: invalid device ordinal",
        "memory that the GPUs share symmetrically cannot be had between these GPUs",
        "--env VLLM_ALLREDUCE_USE_SYMM_MEM=0, or --disable-custom-all-reduce",
    ),
    Rule(
        K.PARALLELISM,
        r"invalid device ordinal|CUDA_ERROR_INVALID_DEVICE|Invalid device id|"
        r"device (?:index|ordinal) (?:out of range|\d+ is out of)",
        "more GPUs are asked for than can be seen, or one by a number that is not there",
        "lower tensor, pipeline or data parallelism, or show more GPUs (CUDA_VISIBLE_DEVICES)",
    ),
    Rule(
        K.START_METHOD,
        r"Cannot re-initialize CUDA in forked subprocess",
        "the process had used CUDA before it was forked, and CUDA does not survive that",
        "--env VLLM_WORKER_MULTIPROC_METHOD=spawn, and let nothing touch CUDA before the engine is "
        "made (torch.cuda.is_available() in your own program counts)",
    ),
    Rule(
        K.START_METHOD,
        r"attempt has been made to start a new process before the\s{1,12}current process has "
        r"finished|freeze_support\(\)|bootstrapping phase",
        "the program that makes the engine starts it at import: each new process would start it "
        "again",
        'put the code under `if __name__ == "__main__":`',
    ),
    Rule(
        K.NO_GPU,
        r"Found no NVIDIA driver|No CUDA GPUs are available|No CUDA devices found"
        r"|[Nn]o CUDA-capable "
        r"device|Failed to infer device type|NVML: Driver Not Loaded|NVMLError_DriverNotLoaded"
        r"|Torch not compiled with CUDA"
        r"|[Cc][Uu][Dd][Aa] driver can't be loaded|Device string must not be empty"
        r"|No accelerator \(CUDA, [^\n]{0,80}is available|NVMLError_LibraryNotFound"
        r"|NVML Shared Library Not Found|[Nn]o (?:ROCm|HIP)-capable device"
        r"|No HIP GPUs are available"
        r"|torch finds no CUDA GPU|could not select device driver|libnvidia-ml\.so\.1: cannot open"
        r"|CUDA is not available|[Ee]xpected a cuda device, but got"
        r"|on a CUDA device but torch\.cuda\."
        r"is_available\(\) is False|nvidia-container-cli: initialization error",
        "this build of {engine} needs an NVIDIA GPU and sees none",
        "see whether `nvidia-smi` works here and CUDA_VISIBLE_DEVICES is right (in a container: "
        "--gpus all); on a machine without a GPU: {without}",
        _without_gpu,
        vague=True,
    ),
)
_MEMORY = (
    Rule(
        K.OUT_OF_MEMORY,
        rf"(?:CUDA|HIP|XPU|NPU|MPS(?: backend)?) out of memory\.?(?: Tried to allocate "
        rf"(?P<wanted>{_SIZE}))?",
        "the GPU's memory ran out{wanted}{free}",
        "{fix}",
        _cuda_memory,
        late=True,
    ),
    Rule(
        K.OUT_OF_MEMORY,
        r"CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|NCCL[^\n]{0,200}out of memory"
        r"|(?:Cuda|HIP) failure:? (?:2 )?'out of memory'|CUDA_ERROR_OUT_OF_MEMORY"
        r"|cudaErrorMemoryAllocation"
        r"|cudaMalloc[^\n]{0,40}failed: out of memory|CUDNN_STATUS_ALLOC_FAILED"
        r"|Triton Error \[CUDA\]: out of memory|HIP error: out of memory"
        r"|torch\.(?:cuda\.)?OutOfMemoryError",
        "the GPU's memory ran out outside torch's own pool",
        "see with `nvidia-smi` who uses it; a smaller --gpu-memory-utilization leaves more for "
        "CUDA itself",
        spoken=True,
        late=True,
    ),
    Rule(
        K.HOST_MEMORY,
        r"DefaultCPUAllocator: (?:can't allocate|not enough) memory"
        r"(?:: you tried to allocate (?P<wanted>\d{1,18}) bytes)?|std::bad_alloc|\bMemoryError\b"
        r"|Cannot allocate memory|Failed to allocate memory|Unable to allocate [^\n]{0,80} for an "
        r"array|\[Errno 12\]|failed to (?:map|pin|lock) [^\n]{0,40}memory"
        r"|cudaHostAlloc[^\n]{0,40}fail"
        r"|running low on memory|not enough (?:CPU|host|system) memory",
        "this machine's own memory (not the GPU's) ran out{wanted}, or a limit on it was met "
        "(`ulimit -v`, a container's or a batch job's)",
        "see `free -g` and `ulimit -v`; give the job more memory, or load less: a smaller model, "
        "and on a CPU a smaller KV cache (--env VLLM_CPU_KVCACHE_SPACE=GIB for vLLM)",
        _host_memory,
        late=True,
    ),
    Rule(
        K.HOST_MEMORY,
        r"oom[-_ ]kill(?:er)? event|Out of memory: Killed process|Memory cgroup out of memory"
        r"|OOMKilled|oom_reaper|Exceeded (?:job|step) memory limit"
        r"|std::bad_alloc|ray\.exceptions\.OutOfMemoryError",
        "this machine's own memory (not the GPU's), or what a container or a batch job may use of "
        "it, ran out, and the kernel killed a process",
        "see `free -g`; give the job more memory, or load less: a smaller model, fewer processes",
        spoken=True,
        late=True,
    ),
)
_HUB = (
    Rule(
        K.MODEL_GATED,
        r"GatedRepoError|access a gated repo\b|Cannot access gated repo"
        r"|Access to model \S{1,120} is "
        r"restricted|401 Client Error[^\n]{0,200}huggingface"
        r"|403 Client Error[^\n]{0,200}huggingface"
        r"|Invalid (?:username or password|credentials|user token)",
        "the hub gives this model only to accounts that accepted its conditions",
        "accept them on the model's page, then set HF_TOKEN to a token of that account",
    ),
    Rule(
        K.DOWNLOAD_FAILED,
        r"error downloading or loading vocab file|failed to download or load vocab"
        r"|openaipublic\.blob|(?:o200k|cl100k)_base\.tiktoken",
        "a file of the tokenizer's vocabulary is fetched from the network when it is first used, "
        "and could not be",
        "fetch it elsewhere and name its folder: TIKTOKEN_ENCODINGS_BASE for openai-harmony "
        "(o200k_base.tiktoken, cl100k_base.tiktoken), TIKTOKEN_CACHE_DIR for tiktoken",
    ),
    Rule(
        K.DOWNLOAD_FAILED,
        r"429 Client Error|Too Many Requests for url|5\d\d Server Error[^\n]{0,200}huggingface"
        r"|[Rr]ate limit[^\n]{0,60}(?:hub|huggingface)",
        "the hub refuses more requests for now, or does not work",
        "wait and try again; with HF_TOKEN more requests are allowed",
    ),
    Rule(
        K.DOWNLOAD_FAILED,
        r"Consistency check failed: file should be of size|IncompleteRead|incomplete download"
        r"|Error while downloading from|CAS service error|hf_transfer[^\n]{0,80}(?:error|failed)"
        r"|An error occurred while downloading using `hf_transfer`|DownloadError"
        r"|ChunkedEncodingError|Failed to download[^\n]{0,120}(?:cubin|artifact|http)",
        "a download broke off",
        "start it again: what is there is not downloaded twice; HF_HUB_ENABLE_HF_TRANSFER=0 or "
        "HF_HUB_DISABLE_XET=1 use the plain way",
    ),
    Rule(
        K.REMOTE_CODE,
        r"contains custom code which must be executed|requires you to execute the"
        r"|pass the argument `?trust_remote_code=True`?|setting `?trust_remote_code=True`?"
        r"|set(?:ting)? the option `?trust_remote_code=True`?|`--trust-remote-code`",
        "the model comes with Python code of its own, which is not run unasked",
        "read that code; if you trust it: --trust-remote-code",
    ),
    Rule(
        K.WRONG_VALUE,
        r"No such file or directory: '[^']{1,300}adapter_(?:config\.json|model\.\w{1,12})'"
        r"|Can't find 'adapter_config\.json'|No adapter found for|does not contain adapter_config",
        "a folder that was given as a LoRA adapter holds none",
        "name the folder with adapter_config.json and adapter_model.safetensors in it",
    ),
    Rule(
        K.MODEL_INCOMPLETE,
        r"does not appear to have (?:a file|files) named (?P<file>[^\n]{1,120}?)(?:\.? Checkout|$"
        r"|\n)"
        r"|[Nn]o file named (?P<weights>[^\s,]{1,120})|Should have a `model_type` key"
        r"|No model architectures are specified|No tokenizer file found"
        r"|Invalid type of HuggingFace processor|TypeError: not a string"
        r"|Found 0 files matching the pattern|Cannot find any model weights"
        r"|Couldn't instantiate the backend tokenizer"
        r"|Can't load (?:the )?(?:image processor|feature extractor|processor|tokenizer)"
        r"|[Nn]o (?:safetensors|checkpoint|weight) files? (?:found|matching)"
        r"|missing (?:weight|shard) files?|No such file or directory: '(?P<part>[^']{1,200}"
        r"(?:\.safetensors|\.bin|tokenizer[\w.]{0,20}|config\.json|params\.json|tekken\.json))'",
        "the model's folder lacks its configuration, its weights or its tokenizer "
        "{file}{weights}{part}: a copy or download that broke off, or only a part of a training "
        "checkpoint",
        "fetch it again, or copy what is missing (config.json, tokenizer.json, "
        "tokenizer_config.json, *.safetensors) from the base model's folder",
    ),
    Rule(
        K.MODEL_NOT_FOUND,
        r"Cannot find an appropriate cached snapshot|LocalEntryNotFoundError|OfflineModeIsEnabled"
        r"|[Ww]e couldn't connect to|outgoing traffic has been disabled|couldn't find (?:it"
        r"|them) in "
        r"the cached files",
        "the model is not on this machine, and the hub was not asked or did not answer",
        "give a checkpoint's folder; or unset HF_HUB_OFFLINE and fix the network or the proxy "
        "(HF_ENDPOINT names another hub)",
    ),
    Rule(
        K.MODEL_NOT_FOUND,
        r"RepositoryNotFoundError|RevisionNotFoundError|not a valid model identifier"
        r"|Repo id must (?:be in the form|use alphanumeric)"
        r"|Invalid repository ID or local directory"
        r"|HFValidationError|EntryNotFoundError|404 Client Error[^\n]{0,200}huggingface"
        r"|is not a local folder|Incorrect path_or_model_id|Can't load the configuration of"
        r"|(?:model|checkpoint) path [^\n]{0,120}does not exist",
        "the model was not found: neither a folder with a config.json, nor a handle that the hub "
        "knows",
        "check the spelling: a folder's path, or owner/name; a private model needs HF_TOKEN",
    ),
    Rule(
        K.MODEL_NOT_FOUND,
        r"(?:Max retries exceeded|NameResolutionError|Temporary failure in name resolution"
        r"|Name or service not known|ProxyError|SSLError|SSLCertVerificationError"
        r"|CERTIFICATE_VERIFY_FAILED|ConnectTimeout|ReadTimeout|Network is unreachable)"
        r"[^\n]{0,300}(?:huggingface|hf-mirror|modelscope|hf\.co|/resolve/)"
        r"|(?:huggingface|hf-mirror|modelscope|hf\.co)[^\n]{0,200}(?:Max retries exceeded|"
        r"NameResolutionError|Temporary failure in name resolution|Name or service not known|"
        r"ProxyError|SSLError|SSLCertVerificationError|ConnectTimeout|ReadTimeout|Read timed out|"
        r"Connection refused|Network is unreachable)",
        "the model is not on this machine, and the hub could not be reached",
        "give a checkpoint's folder; or fix the network, the proxy or its certificate "
        "(HF_ENDPOINT names another hub)",
    ),
    Rule(
        K.MODEL_BROKEN,
        r"SafetensorError|[Hh]eader ?too ?(?:large|small)|InvalidHeader|MetadataIncompleteBuffer"
        r"|OverflowError: cannot fit 'int' into an index-sized|PytorchStreamReader failed"
        r"|is not a valid JSON file|invalid load key, '(?P<key>[^']{1,8})'"
        r"|git-lfs|Git LFS|Unable to load weights from (?:pytorch|tf) checkpoint"
        r"|UnpicklingError|unexpected end of data|file not fully covered",
        "a file of the model is broken: cut off, or not what its name says",
        "compare the sizes with the source's and fetch it again; `git lfs pull` if it is a Git LFS "
        "pointer",
    ),
    Rule(
        K.MODEL_BROKEN,
        r"JSONDecodeError",
        "a file is no JSON, though its name says so: cut off, empty, or a Git LFS pointer",
        "look at the file that the traceback reads; fetch the model again, or `git lfs pull`; a "
        "broken cache (~/.cache/vllm, ~/.cache/huggingface) can be removed",
        vague=True,
    ),
    Rule(
        K.UNSUPPORTED_MODEL,
        r"Model architectures (?P<names>\[[^\]\n]{0,300}\]) are not supported"
        r"|has model type `(?P<type>[^`]{0,80})` but Transformers does not recognize"
        r"|does not recognize this (?:architecture|model)"
        r"|(?P<gone>Model architecture \S{1,80} (?:was supported|is not supported)[^\n]{0,200})"
        r"|Cannot find model module\. '(?P<missing>\w+)' is not a registered model"
        r"|Unrecognized (?:configuration class|model)(?P<class>[^\n]{0,120})"
        r"|(?P<auto>\w{1,80}) is not supported for Auto\w+"
        r"|Unsupported (?:model )?architectures?:? (?P<arch>[^\n]{1,80})"
        r"|Unknown gguf model_type: (?P<ggtype>\S{1,40})"
        r"|GGUF model with architecture (?P<gguf>\S{1,40}) is not supported"
        r"|KeyError: '(?P<key>[a-z][a-z0-9_]{1,30}(?:_moe|_vl|_mtp|_next|_text|_omni))'"
        r"|has no vLLM implementation and the Transformers implementation is not compatible"
        r"|generates no text|No module named 'transformers\.models\.(?P<module>\w{1,60})'",
        "this {engine}, or its transformers, does not know the model's architecture "
        "{names}{type}{gone}{missing}{class}{auto}{arch}{ggtype}{gguf}{key}{module}",
        "take an engine that does: another version (`enginehouse install ENGINE --version …`, or "
        "--python with an install of your own), or --engine vllm, hf or llamacpp; see "
        "`architectures` in the "
        "model's config.json",
    ),
)
_MODEL = (
    Rule(
        K.WEIGHTS_MISMATCH,
        r"There is no module or parameter named '(?P<name>[^']{1,200})'"
        r"|weights were not initialized from (?:the )?checkpoint"
        r"|size mismatch for (?P<size>\S{1,120})"
        r"|ignore_mismatched_sizes|Attempted to load weight "
        r"\((?P<got>[^()]{1,60}(?:\([^()]{0,60}\))?)"
        r"|(?:loaded_weight|param(?:_data)?)\.(?:shape|size\(\))|Error\(s\) in loading state_dict"
        r"|[Uu]nexpected key\(s\) in state_dict"
        r"|(?:Missing|missing) key\(s\) in state_dict|shape mismatch[^\n]{0,40}weight"
        r"|weight[^\n]{0,60}shape mismatch",
        "names or shapes of the checkpoint's weights are not those that {engine}'s class for this "
        "architecture expects {name}{size}{got}",
        "see that config.json belongs to these weights, and how they were saved (merged? "
        "quantized? "
        "another framework's names?); a newer {engine} may know the variant",
    ),
    Rule(
        K.UNSUPPORTED_DTYPE,
        r"torch\.(?P<dtype>\w+) is not supported for quantization method (?P<method>\w+)\. "
        r"Supported dtypes: \[(?P<known>[^\]]{0,200})",
        "weights quantized with {method} cannot be computed with in {dtype}",
        "--dtype with one of: {known}",
        _without_torch,
    ),
    Rule(
        K.QUANTIZATION,
        r"quantization method (?P<method>\S{1,60}) is not supported for the current GPU\. Minimum "
        r"capability: (?P<needs>\d+)\. Current capability: (?P<has>\d+)",
        "{method} needs a GPU of compute capability {needs}; this one has {has}",
        "use the model's unquantized weights, or a newer GPU",
        _capabilities,
    ),
    Rule(
        K.QUANTIZATION,
        r"model config \((?P<is>\S{1,60})\) does not match the quantization method [^(\n]{0,120}"
        r"\((?P<given>\S{1,60})\)",
        "the checkpoint is quantized with {is}, and --quantization says {given}",
        "leave --quantization out: it is read from the checkpoint",
    ),
    Rule(
        K.QUANTIZATION,
        r"(?:bitsandbytes|auto-?gptq|gptqmodel|auto-?awq|compressed.tensors|optimum|torchao|fbgemm|"
        r"mxfp4|triton_kernels)\b[^\n]{0,120}(?:[Pp]lease install|pip install|required|requires"
        r"|not installed|not found)"
        r"|quantiz\w{1,6} [^\n]{0,120}(?:is not supported|not supported|requires)"
        r"|Unknown quantization (?:method|type)[^\n]{0,80}|Invalid quantization method"
        r"|(?:input|output) size[^\n]{0,60}not aligned with the quantized weight"
        r"|(?:not divisible by|% ?)[^\n]{0,20}(?:min_thread_[nk]|group_size|block_[nk]|weight "
        r"quantization block)|input_size_per_partition|output_size_per_partition"
        r"|g_idx|desc_act|[Ff]ailed to find a kernel that can implement"
        r"|Quantization scheme is not supported|[Nn]o (?:compatible|suitable|valid) "
        r"(?:FP8|fp8|MoE|NVFP4|MXFP4|quant\w{0,10}|w4a16|scaled_mm) (?:kernel|backend)"
        r"|(?:Marlin|AWQ|GPTQ|FP8|NVFP4|MXFP4|CUTLASS|Machete|ExLlama)[^\n]{0,80}(?:not supported|"
        r"does not support|only supports?|requires)|tile_[nk]_size"
        r"|compressed-tensors compatible scheme|type fp8\w{1,10} not supported"
        r"|only fp8 gemm is implemented|weight_scale\w{0,20}|weight_zero_point"
        r"|\.(?:absmax|qweight|qzeros|scales)\b"
        r"|quantization method \S{1,40} is not supported",
        "the checkpoint is quantized in a way that this {engine} cannot compute with here: the "
        "method is unknown, the GPU has no kernel for it, or its groups cannot be shared out "
        "among this many GPUs",
        "a smaller --tensor-parallel-size, if the line is about sizes; otherwise unquantized "
        "weights, another quantization, or a newer {engine} or GPU",
    ),
    Rule(
        K.PARALLELISM,
        r"(?:AssertionError: )?(?P<what>\d{1,9}) is not divisible by (?P<size>\d{1,6})"
        r"|(?P<line>(?:num_\w{1,30}|heads?|hidden_size|vocab\w{0,12}|intermediate_size)[^\n]{0,80}"
        r"(?:must be|is not|not) divisible by[^\n]{0,60})",
        "something of the model ({what}{line} heads or columns) cannot be shared out among {size} "
        "GPUs",
        "a --tensor-parallel-size that divides {what}; --pipeline-parallel-size has no such rule",
        _divisible,
    ),
)
LOST_CONNECTION = (
    Rule(
        K.COMMUNICATION,
        r"[Gg]loo[^\n]{0,200}(?:failed|[Tt]imed out|no error|closed|reset)|connectFullMesh"
        r"|Timed out (?:after \d{1,6} seconds )?waiting for clients|DistStoreError"
        r"|Connection (?:closed|reset) by peer|DistNetworkError|The client socket has (?:failed"
        r"|timed"
        r" out)|wait timeout after \d{1,9}ms|Broken pipe|Socket Timeout|StoreTimeout"
        r"|remote process (?:exited|has terminated)|Failed to connect to (?:the )?(?:head|master)"
        r"|[Uu]nable to (?:find|determine) address for",
        "the processes or nodes did not find each other in time, or one of them ended",
        "see the log of the other processes first; then that all nodes run, use the same address "
        "and port, and reach each other (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME, VLLM_HOST_IP)",
        vague=True,
    ),
)
_COMMUNICATION = (
    Rule(
        K.COMMUNICATION,
        r"NCCL_ERROR|Call to (?:connect|bind|recv|ibv_\w{1,40})[^\n]{0,80}(?:failed|returned)"
        r"|(?:No|no) (?:socket|network) interface found|Bootstrap : no socket interface"
        r"|Failed to (?:open|find) [^\n]{0,40}(?:libnccl|IB device)|Duplicate GPU detected"
        r"|peer access is not supported|ibv_\w{1,40} failed|Unable to find (?:a )?NET plugin"
        r"|Mismatched collective|Failed: Cuda error [^\n]{0,80}custom_all_reduce"
        r"|[Ee]very node should have a unique IP|HCCL[^\n]{0,60}(?:fail|timeout)"
        r"|Invalid config blocking attribute",
        "NCCL could not connect the GPUs or nodes",
        "see the line: the network that NCCL chose (NCCL_SOCKET_IFNAME), InfiniBand "
        "(NCCL_IB_DISABLE=1 does without), direct access between GPUs (NCCL_P2P_DISABLE=1, "
        "--disable-custom-all-reduce); each rank needs a GPU of its own",
        spoken=True,
        vague=True,
    ),
    Rule(
        K.COMMUNICATION,
        r"NIXL_ERR_\w{1,40}|nixl\w{0,20}(?:Error|error)|KeyError: '?'?UCX|UCX\s{1,3}ERROR"
        r"|NIXL is not available|(?:No|no) usable transports|ucp_\w{1,40}[^\n]{0,60}failed"
        r"|(?:Unable to|Failed to) (?:create|initialize) (?:UCX|NIXL|nixl|ucx|Mooncake)"
        r"|[Mm]ooncake[^\n]{0,80}fail"
        r"|Worker failed with error '{1,2}UCX",
        "NIXL, UCX or Mooncake, which hand the KV cache from one server to another, could not "
        "start or lost "
        "the other side",
        "see that nixl and its UCX are installed with CUDA, that UCX_TLS and UCX_NET_DEVICES name "
        "what the machine has, and that the other server is up",
        spoken=True,
        vague=True,
    ),
    Rule(
        K.COMMUNICATION,
        r"NCCL (?:error|Error)|ncclUnhandled\w{1,20}|ncclInternalError|ncclSystemError"
        r"|ncclInvalid\w{1,12}|ncclRemoteError|DistBackendError|unhandled (?:system|cuda) error"
        r"|[Ww]atchdog (?:caught collective|thread terminated|got stuck)|detected by watchdog"
        r"|Exception raised from (?:checkTimeout|ncclCommWatchdog)|collective operation timeout"
        r"|ProcessGroupNCCL[^\n]{0,80}(?:timeout|timed out|aborted)",
        "the GPUs or nodes could not talk to each other through NCCL, or one of them fell silent",
        "if another rank has an error of its own, that one counts; else start it again with "
        "NCCL_DEBUG=WARN and read what it says; try NCCL_P2P_DISABLE=1 or NCCL_IB_DISABLE=1, name "
        "the network with NCCL_SOCKET_IFNAME, and give a container --shm-size 10g",
        vague=True,
    ),
    *LOST_CONNECTION,
    Rule(
        K.RAY_RESOURCES,
        r"Could not find any running Ray instance|Failed to connect to (?:GCS|Ray)"
        r"|Ray does not allocate "
        r"any GPUs|Cannot provide a placement group|Waiting for creating a placement group"
        r"|[Pp]lacement group[^\n]{0,80}(?:timed? ?out|infeasible|"
        r"cannot be)|Current node has no GPU available"
        r"|number of required \w{1,8} exceeds the total "
        r"number of (?:available )?\w{1,8}|cannot be scheduled right now"
        r"|No available node types can"
        r"|Insufficient resources for (?:the )?(?:placement|actor)",
        "the Ray cluster is not reached, or has not as many GPUs free as the engine asks for",
        "`ray status` shows what there is and who holds it: start the missing nodes, end what "
        "holds "
        "the GPUs, or lower --tensor-parallel-size; VLLM_HOST_IP must be the address that Ray "
        "knows",
    ),
)
_WHILE_RUNNING = (
    Rule(
        K.CRASHED,
        r"CUDA error: (?:an illegal memory access|device-side assert|unspecified launch failure|an "
        r"illegal instruction|misaligned address|invalid program counter|uncorrectable)"
        r"|illegal memory access was encountered|device-side assert triggered|uncorrectable ECC"
        r"|CUBLAS_STATUS_(?:EXECUTION_FAILED|INTERNAL_ERROR|NOT_INITIALIZED)|CUDNN_STATUS_\w{1,40}"
        r"|HSA_STATUS_ERROR|Memory access fault by GPU|GPU has fallen off the bus|NVRM: Xid",
        "native code of {engine}, or the GPU, crashed",
        "start it again; if it happens again, leave out what is special (--enforce-eager, no "
        "quantization), see `dmesg -T | grep -i xid` for faults of the GPU, and report it to "
        "{engine}",
        late=True,
    ),
    Rule(
        K.CRASHED,
        r"Fatal Python error: |!+ *Segfault encountered|^Segmentation fault|^Illegal instruction"
        r"|GGML_ASSERT|ggml_abort|double free or corruption|corrupted size vs|free\(\): invalid"
        r"|\*\*\* SIG(?:SEGV|ABRT|BUS|ILL|FPE) received",
        "native code of {engine}, or the GPU, crashed",
        "start it again; if it happens again, leave out what is special (--enforce-eager, no "
        "quantization), see `dmesg -T | grep -i xid` for faults of the GPU, and report it to "
        "{engine} with the log",
        vague=True,
        spoken=True,
        late=True,
    ),
    Rule(
        K.CRASHED,
        r"^Bus error",
        "the shared memory or the disk ran full while it was being written (SIGBUS)",
        "look at `df -h /dev/shm /tmp`; in a container, start it with a larger --shm-size",
        vague=True,
        spoken=True,
    ),
    Rule(
        K.WRONG_LIBRARY,
        r"(?:ModuleNotFoundError: )?No module named '(?P<name>(?!vllm\._)[^']{1,120})'",
        "the environment lacks a Python package that is imported: {name}",
        "install what provides {package} into the environment that --python names, or build the "
        "environment again: {rebuild}",
        _missing_package,
    ),
    Rule(
        K.WRONG_LIBRARY,
        r"(?:[Pp]lease (?:pip )?install|You need to install|pip install) (?:-U |the )?[`'\"]?"
        r"(?P<name>[a-zA-Z][\w.\-\[\]]{1,60})|requires the (?P<other>[\w.\-]{2,60}) (?:library"
        r"|package)"
        r"|(?:package|library|module) [`'](?P<third>[\w.\-]{2,60})[`'] (?:is not installed"
        r"|was not found)"
        r"|ImportError: (?P<fourth>[\w.\-]{2,40}) is not installed"
        r"|PackageNotFoundError: (?:No package metadata was found for )?'?(?P<meta>[\w.\-]{1,60})",
        "the environment lacks a Python package: {name}{other}{third}{fourth}{meta}",
        "install it into that environment, or build the environment again: {rebuild}",
        _rebuild,
    ),
    Rule(
        K.WRONG_BUILD,
        r"'_OpNamespace' '_\w{1,40}' object has no attribute"
        r"|Could not run '\w{1,40}::\w{1,80}'"
        r"|No module named 'vllm\._C"
        r"|name 'vllm_\w{1,40}' is not defined",
        "the compiled part of {engine} (or torchvision) does not fit the torch in this "
        "environment: a CUDA build and a CPU build were mixed",
        "make the environment again: `enginehouse envs` names it, then `enginehouse envs remove "
        "KEY` and {rebuild}; install nothing into it that depends on vllm",
        _rebuild,
        vague=True,
    ),
    Rule(
        K.PACKAGE_MISMATCH,
        r"'?\w{1,60}(?:Config|Tokenizer|TokenizerFast|Processor"
        r"|ImageProcessor)'?(?: object)? has no "
        r"attribute '?(?P<what>\w{1,80})|module '(?P<module>[\w.]{1,80})' has no attribute "
        r"'(?P<attribute>\w{1,80})'|^ImportError: (?P<import>[^\n]{1,200})"
        r"|__init__\(\) (?:got an unexpected keyword|missing \d required)[^\n]{0,60}",
        "two packages of the environment do not fit each other, most likely transformers and "
        "{engine}, or the model's own code and transformers: {what}{module} {attribute}{import}",
        "install the versions that {engine} asks for, or build the environment again: {rebuild}",
        _rebuild,
        vague=True,
    ),
    Rule(
        K.UNSUPPORTED_FEATURE,
        r"No valid (?:attention )?backend\w*|[Ss]elected backend [^\n]{0,80}is not valid"
        r"|FlashAttention[^\n]{0,80}only supports? (?:Ampere|Hopper|SM)"
        r"|No available kernel\. Aborting"
        r"|FlashAttention-?\d? [^\n]{0,60}(?:not supported|requires)|Unsupported FA version"
        r"|(?:Sinks|sinks|MLA|fp8 kv cache|FP8 KV cache|[Ss]liding window)[^\n]{0,80}not supported"
        r"|[Hh]ead (?:size|dim)\w{0,10} [^\n]{0,20}not supported|unsupported head (?:size|dim)"
        r"|out of resource: shared memory|requires GPUs with sm\d"
        r"|FlashAttention on [^\n]{0,40}only supports"
        r"|Hybrid KV cache manager is disabled but|does not support multicast"
        r"|No suitable kernel\. h_in"
        r"|does not support (?P<feature>LoRA|pipeline parallel\w*|data parallel\w*"
        r"|tensor parallel\w*"
        r"|[^\n]{1,80}) yet|(?P<on>\w[\w \-]{1,60} (?:is not supported on (?:this"
        r"|the current) (?:device|GPU|platform)"
        r"|requires (?:Hopper|Ampere|Blackwell|SM ?\d))[^\n]{0,60})"
        r"|does not yet support (?P<yet>[^\n]{1,80})"
        r"|(?P<with>\w[\w \-]{1,60} is not "
        r"supported (?:yet|with|together|in V1|on V1|by V1)[^\n]{0,80})"
        r"|[Cc]ompute capability[^\n]{0,60}"
        r"(?:required|at least|>=)"
        r"|(?P<only>[\w`][\w` \-]{1,60} (?:is|are) only supported (?:in|on|with|for"
        r"|by) [^\n]{1,80})",
        "{engine} cannot do that with this model or on this GPU: {feature}{on}{yet}{with}{only}",
        "leave the option out, choose another backend, a newer {engine}, or a GPU that has it",
    ),
    Rule(
        K.UNSUPPORTED_FEATURE,
        r"^(?:\w+\.){0,8}NotImplementedError: (?P<what>[^\n]{1,200})",
        "{engine} cannot do that with this model or on this GPU: {what}",
        "leave the option out, choose another backend, a newer {engine}, or a GPU that has it",
        vague=True,
    ),
    Rule(
        K.TOOLCHAIN,
        r"No such file or directory: '[^']{1,200}(?:torch_compile_cache|torchinductor)[^']{0,200}'",
        "a cache of compiled code is broken, or was removed while it was used",
        "remove it (~/.cache/vllm/torch_compile_cache, /tmp/torchinductor_*) and start again; "
        "VLLM_DISABLE_COMPILE_CACHE=1 does without",
        vague=True,
    ),
    Rule(
        K.TOOLCHAIN,
        r"torch\._(?:dynamo|inductor)\.exc\.\w{1,60}(?:: (?P<what>[^\n]{1,200}))?",
        "torch.compile could not compile the model: {what}",
        "--enforce-eager does without it; a newer {engine} may know the model better",
        vague=True,
    ),
    Rule(
        K.DOWNLOAD_FAILED,
        r"Temporary failure in name resolution|NameResolutionError|Name or service not known"
        r"|ConnectTimeout|ReadTimeoutError|Network is unreachable|CERTIFICATE_VERIFY_FAILED"
        r"|ProxyError",
        "something was to be fetched from the network, and could not be",
        "see what the line names, and the network, the proxy and its certificate; what is on this "
        "machine already is found with HF_HUB_OFFLINE=1 or by a path",
        vague=True,
    ),
    Rule(
        K.CRASHED,
        r"terminate called|CUDA (?:driver )?error: (?P<what>[^\n]{1,120})",
        "native code of {engine}, or the GPU, gave up {what}",
        "start it again; if it happens again, leave out what is special (--enforce-eager, no "
        "quantization), and report it to {engine} with the log",
        vague=True,
        late=True,
    ),
)


RULES = (
    *_COMMAND_LINE,
    *_DISK,
    *_PORTS,
    *_LIBRARIES,
    *_TOOLCHAIN,
    *_PACKAGE_RULES,
    *_CUDA,
    *_MEMORY,
    *_HUB,
    *_MODEL,
    *_COMMUNICATION,
    *_WHILE_RUNNING,
)
