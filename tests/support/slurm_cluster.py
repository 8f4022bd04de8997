"""A Slurm cluster of the tests' own, started from Debian's programs on this machine.

munged, slurmctld and a slurmd for each node run as this user, below a temporary folder, and listen
on loopback ports that the system chose. Accounting is off, as it is on many small clusters.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_START = 60.0  # seconds until all nodes are idle
_STOP = 20.0  # seconds for a daemon to end
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

_CONFIGURATION = """\
ClusterName=enginehouse
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=3
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
MinJobAge=600
SlurmdTimeout=300
SlurmctldParameters=node_reg_mem_percent=1
SchedulerParameters=sched_min_interval=0,bf_interval=2,max_rpc_cnt=0
{nodes}
PartitionName=batch Nodes=ALL Default=YES MaxTime=1-00:00:00 State=UP
PartitionName=spot Nodes=ALL PriorityTier=1 PreemptMode=CANCEL State=UP
PartitionName=requeue Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP
"""
_NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} Boards=1"
    " SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=4096 Gres=gpu:2"
)


class SlurmMissingError(Exception):
    """There are no programs to start a cluster from; says which were looked for."""


@dataclass
class SlurmCluster:
    """A running cluster. `environment` is what its client programs need, beside nothing else.

    Its partitions are batch (the default), spot (jobs are cancelled for those of urgent), requeue
    (jobs are requeued for those of urgent) and urgent.
    """

    folder: Path
    environment: dict[str, str]
    _daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def run(self, program: str, *words: str) -> str:
        """What a client program prints. Raises CalledProcessError."""
        return subprocess.run(
            [program, *words],
            check=True,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=60,
        ).stdout

    def kill_node(self, name: str) -> None:
        """The node is lost, as by a power cut: its daemon and all jobs on it are gone at once."""
        raise NotImplementedError

    def forget_jobs(self) -> None:
        """Restart the controller without its state, as if all jobs had ended long ago."""
        raise NotImplementedError


def _free_ports(number: int) -> list[int]:
    """Ports that were free a moment ago, each another one."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def slurm_cluster(*, nodes: int = 2, cpus: int = 64) -> Iterator[SlurmCluster]:
    """A cluster for the length of the block, with no job. Raises SlurmMissingError.

    All nodes are this machine. `cpus` is what each claims to have: the tests' jobs are idle.
    """
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    if missing:
        raise SlurmMissingError(
            f"{', '.join(missing)} not in PATH:"
            " apt-get install --no-install-recommends slurm-wlm munge"
        )
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # sockets need short paths
    controller, *ports = _free_ports(nodes + 1)
    host = socket.gethostname()
    lines = [
        _NODE.format(name=f"node{i}", host=host, port=port, cpus=cpus)
        for i, port in enumerate(ports)
    ]
    (folder / "slurm.conf").write_text(
        _CONFIGURATION.format(
            host=host, port=controller, user="root", folder=folder, nodes="\n".join(lines)
        )
    )
    (folder / "gres.conf").write_text("Name=gpu Count=2\n")
