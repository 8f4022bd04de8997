"""GPUs, processes and nodes that do not reach each other."""

from __future__ import annotations

from enginehouse.diagnosis.kinds import FailureKind
from enginehouse.diagnosis.rule import Rule

K = FailureKind


LOST_CONNECTION = (
    Rule(
        K.COMMUNICATION,
        r"[Gg]loo[^\n]{0,200}(?:failed|[Tt]imed out|no error|closed|reset)|connectFullMesh"
        r"|Timed out (?:after \d{1,6} seconds )?waiting for clients|DistStoreError"
        r"|Connection (?:closed|reset) by peer|DistNetworkError|The client socket has (?:failed"
        r"|timed"
        r" out)|wait timeout after \d{1,9}ms|Broken pipe|Socket Timeout|StoreTimeout"
        r"|RPC Error message: |remote process (?:exited|has terminated)"
        r"|Failed to connect to (?:the )?(?:head|master)"
        r"|[Uu]nable to (?:find|determine) address for",
        "the processes or nodes did not find each other in time, or one of them ended",
        "see the log of the other processes first; then that all nodes run, use the same address "
        "and port, and reach each other (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME, VLLM_HOST_IP)",
        vague=True,
    ),
)
RULES = (
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
        K.COMMUNICATION,
        r"environment variable (?P<name>MASTER_ADDR|MASTER_PORT|RANK|WORLD_SIZE) expected, but not",
        "the processes are to meet where the environment says, and {name} is not set",
        "set it, or start it with torchrun or with the options of {engine} for several nodes",
    ),
    Rule(
        K.COMMUNICATION,
        r"^(?:\w+\.){0,6}(?:OSError|TimeoutError|ConnectionRefusedError|ConnectionError): "
        r"\[Errno (?:110|111|113)\] (?P<what>[^\n]{1,80})",
        "another process or machine could not be reached ({what})",
        "see that what the traceback connects to runs and its address and port are right, and that "
        "no firewall or proxy (no_proxy) is in between",
        vague=True,
    ),
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
