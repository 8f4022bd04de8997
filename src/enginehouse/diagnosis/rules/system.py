"""What the operating system refuses: disks, folders, limits, ports."""

from __future__ import annotations

from enginehouse.diagnosis.kinds import FailureKind
from enginehouse.diagnosis.rule import Rule

K = FailureKind


RULES = (
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
        r"|No space left on device.{0,20}/dev/shm|/dev/shm.{0,60}too small|shared memory too small",
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
        r"|Not enough disk space|database or disk is full"
        r"|PytorchStreamWriter failed writing",
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
        r"|Permission denied \(os error 13\)|kind: PermissionDenied"
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
    Rule(
        K.STOPPED,
        r"\*\*\* (?:JOB|STEP) [\d.+]{1,20} ON \S{1,80} CANCELLED AT|DUE TO (?:TIME LIMIT"
        r"|PREEMPTION)",
        "the batch system ended the job: it was cancelled, or its time was over",
        "ask for more time, or continue with `enginehouse resume RUN` in a new job",
        vague=True,
        spoken=True,
        late=True,
    ),
    Rule(
        K.PORT_TAKEN,
        r"server socket has failed to (?:listen|bind).{0,300}?(?:port: ?(?P<port>\d{2,5})|"
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
