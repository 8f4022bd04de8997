"""A Slurm cluster of the tests' own, started from Debian's programs on this machine.

munged, slurmctld and a slurmd for each node run as this user, below a temporary folder, and listen
on loopback ports that the system chose. Accounting is off, as it is on many small clusters.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

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
AuthInfo=socket={folder}/munge.socket,cred_expire=5
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
KillWait=5
EnforcePartLimits=ALL
MinJobAge=600
SlurmdTimeout=300
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
    """A running cluster. `environment` is what its client programs need.

    Its partitions are batch (the default), spot (jobs are cancelled for those of urgent), requeue
    (jobs are requeued for those of urgent) and urgent. A requeued job waits 5 seconds.
    """

    folder: Path
    environment: dict[str, str]
    _daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def run(self, program: str, *words: str) -> str:
        """What a client program prints. Raises CalledProcessError."""
        return subprocess.run(
            [program, *words],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
            timeout=60,
        ).stdout

    def lose_node(self, name: str) -> None:
        """The node fails, as by a power cut: its daemon and all processes of its jobs are gone."""
        self._end(name, lambda daemon: daemon.kill())
        for process in self._processes():
            with suppress(psutil.Error):
                if self._node_of(process) == name:
                    process.kill()
        self.run("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=lost")

    def return_node(self, name: str) -> None:
        """The node is back, and takes jobs again as soon as it has said so to the controller."""
        self._start_node(name)
        self._await_nodes()

    def forget_jobs(self) -> None:
        """Restart the controller without what it knows, as if every job had ended long ago."""
        self.clear()
        self.stop_controller()
        self._start("slurmctld", "slurmctld", "-D", "-c")
        self._await_nodes()

    def stop_controller(self) -> None:
        """Slurm does not answer any more; jobs run on."""
        self._end("slurmctld", lambda daemon: daemon.terminate())

    def start_controller(self) -> None:
        """Slurm answers again, and knows what it did."""
        self._start("slurmctld", "slurmctld", "-D")
        self._await_nodes()

    def clear(self) -> None:
        """Cancel every job, and wait until all are gone."""
        self.run("scancel", f"--user={getpass.getuser()}")
        self._until(lambda: not self.run("squeue", "--noheader").strip(), "jobs are left")

    def start(self, nodes: int) -> None:
        """Start the daemons, and wait until all nodes are idle."""
        socket_, key = self.folder / "munge.socket", self.folder / "munge.key"
        words = ("munged", "--foreground", f"--socket={socket_}", f"--key-file={key}")
        words += (f"--pid-file={self.folder}/munged.pid", f"--seed-file={self.folder}/seed")
        self._start("munged", *words, f"--log-file={self.folder}/munged.log", "--force")
        self._until(socket_.exists, "munged made no socket")
        self._start("slurmctld", "slurmctld", "-D", "-c")
        for number in range(nodes):
            self._start_node(f"node{number}")
        self._await_nodes()

    def stop(self) -> None:
        """End every job and every daemon."""
        if "slurmctld" in self._daemons:
            with suppress(subprocess.SubprocessError, TimeoutError):
                self.clear()
        for name in reversed(list(self._daemons)):
            self._end(name, lambda daemon: daemon.terminate())
        for process in self._processes():
            with suppress(psutil.Error):
                process.kill()

    def _start_node(self, name: str) -> None:
        self._start(name, "slurmd", "-D", "-N", name)

    def _start(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self.environment
            )

    def _end(self, name: str, how: Callable[[subprocess.Popen[bytes]], None]) -> None:
        daemon = self._daemons.pop(name)
        how(daemon)
        try:
            daemon.wait(_STOP)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _await_nodes(self) -> None:
        def idle() -> bool:
            with suppress(subprocess.SubprocessError):
                states = self.run("sinfo", "--noheader", "--Node", "--format=%N %t").split("\n")
                return all(s.split()[1] in ("idle", "mix", "alloc") for s in states if s)
            return False

        self._until(idle, "the nodes do not become idle")

    def _until(self, condition: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + _START
        while not condition():
            for name, daemon in self._daemons.items():
                if daemon.poll() is not None:
                    said = (self.folder / f"{name}.out").read_text()[-2000:]
                    raise RuntimeError(f"{name} ended with exit code {daemon.returncode}: {said}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {_START:.0f} s {otherwise}; {self.folder} has the logs")
            time.sleep(0.05)

    def _processes(self) -> Iterator[psutil.Process]:
        """The processes of jobs, with the slurmstepds that started them."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == self.environment["SLURM_CONF"] and (
                    process.name() == "slurmstepd" or "SLURM_JOB_ID" in process.environ()
                ):
                    yield process

    def _node_of(self, process: psutil.Process) -> str | None:
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                if name := each.environ().get("SLURMD_NODENAME"):
                    return name
        return None


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
    with ExitStack() as stack:
        for attempts_left in (2, 1, 0):
            try:
                cluster = stack.enter_context(_started(nodes=nodes, cpus=cpus))
                break
            except RuntimeError:  # another program may have taken a port that was free
                if not attempts_left:
                    raise
        yield cluster


@contextmanager
def _started(*, nodes: int, cpus: int) -> Iterator[SlurmCluster]:
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # sockets need short paths
    try:
        _configure(folder, nodes=nodes, cpus=cpus)
        environment = {"PATH": _PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        cluster = SlurmCluster(folder, environment)
        try:
            cluster.start(nodes)
            yield cluster
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path, *, nodes: int, cpus: int) -> None:
    controller, *ports = _free_ports(nodes + 1)
    host = socket.gethostname()
    names = [f"node{number}" for number in range(nodes)]
    lines = [
        _NODE.format(name=name, host=host, port=port, cpus=cpus)
        for name, port in zip(names, ports, strict=True)
    ]
    text = _CONFIGURATION.format(
        host=host, port=controller, user=getpass.getuser(), folder=folder, nodes="\n".join(lines)
    )
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-1]\n")
    for name in ("gpu0", "gpu1"):
        (folder / name).touch()
    for name in ("state", *(f"spool-{name}" for name in names)):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
