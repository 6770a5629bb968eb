"""A Slurm cluster for tests: the distribution's own daemons in a folder of their own, on loopback and on free ports.

Every node is a slurmd of this machine; callers are known by a munge key that lasts as long as the cluster. There are no
cgroups and no accounting. Slurm listens where the host's name leads, so its daemons have a host name of their own.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.desk import processes_with

_START_S = 60.0
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "sinfo")
_CONF = """
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0
SelectType=select/linear
SlurmdParameters=config_overrides
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
PartitionName=lab Nodes=ALL Default=YES State=UP
"""
_NODE = "NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=1 Feature={feature}\n"


def missing() -> str | None:
    """Return why there can be no cluster here, None if there can. Debian keeps the daemons off the PATH of a user."""
    absent = [name for name in _PROGRAMS if _program(name) is None]
    if absent:
        return f"Slurm is not installed ({', '.join(absent)}): apt-get install slurmctld slurmd"
    return "Slurm's daemons start jobs as root only" if os.geteuid() else None


@dataclass(frozen=True)
class SlurmCluster:
    """A running cluster of nodes node1, node2, ... which all have one feature."""

    folder: Path
    nodes: tuple[str, ...]

    @property
    def environ(self) -> dict[str, str]:
        """What Slurm's commands need to find it."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *words: str) -> str:
        """Return what one of Slurm's commands says."""
        done = subprocess.run(
            words, env={**os.environ, **self.environ}, capture_output=True, text=True, timeout=_START_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.logs()
        return done.stdout

    def job(self, number: int) -> dict[str, str]:
        """Return what Slurm knows of a job: JobState, ExitCode, NodeList and more."""
        words = self.ask("scontrol", "--oneliner", "show", "job", str(number)).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def logs(self) -> str:
        """Return the end of what the daemons logged."""
        paths = sorted(self.folder.glob("*.log"))
        return "".join(f"\n{path.name}:\n{path.read_text(errors='replace')[-3000:]}" for path in paths)


@contextmanager
def running_cluster(n_nodes: int, *, feature: str) -> Iterator[SlurmCluster]:
    """Start a cluster in a new folder below the temporary one; end all its processes, and its jobs', on the way out."""
    folder = Path(tempfile.mkdtemp(prefix="lbslurm-"))
    cluster = SlurmCluster(folder, tuple(f"node{number}" for number in range(1, n_nodes + 1)))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(_end, cluster)
        _configure(cluster, feature)
        started = [stack.enter_context(_started(cluster, _munged(folder)))]
        _await((folder / "munge.socket").exists, started, cluster)
        daemons = [["slurmctld", "-D"], *(["slurmd", "-D", "-N", name] for name in cluster.nodes)]
        started += [stack.enter_context(_started(cluster, command)) for command in daemons]
        _await(lambda: _is_up(cluster), started, cluster)
        yield cluster


def _await(is_so: Callable[[], bool], started: Sequence[subprocess.Popen[bytes]], cluster: SlurmCluster) -> None:
    until_s = time.monotonic() + _START_S
    while not is_so():
        if any(process.poll() is not None for process in started) or time.monotonic() > until_s:
            raise RuntimeError(f"Slurm did not start:{cluster.logs()}")
        time.sleep(0.02)


def _configure(cluster: SlurmCluster, feature: str) -> None:
    folder = cluster.folder
    folder.chmod(0o711)  # munge asks for it
    (folder / "state").mkdir()
    (folder / "munge.key").touch(0o600)
    (folder / "munge.key").write_bytes(os.urandom(128))
    port, *ports = _free_ports(1 + len(cluster.nodes))
    nodes = (_NODE.format(name=name, port=at, feature=feature) for name, at in zip(cluster.nodes, ports, strict=True))
    (folder / "slurm.conf").write_text(_CONF.format(port=port, folder=folder) + "".join(nodes), encoding="utf-8")


def _munged(folder: Path) -> list[str]:
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    return ["munged", "--foreground", *(f"--{option}={folder / 'munge'}.{name}" for option, name in files.items())]


def _is_up(cluster: SlurmCluster) -> bool:
    done = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--format=%N %t"],
        env={**os.environ, **cluster.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    return sorted(done.stdout.split("\n")[:-1]) == [f"{name} idle" for name in cluster.nodes]


@contextmanager
def _started(cluster: SlurmCluster, command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    program = _program(command[0])
    assert program is not None, missing()
    with (cluster.folder / f"{command[0]}-{command[-1].rpartition('/')[2].lstrip('-')}.out.log").open("ab") as log:
        process = subprocess.Popen(
            [program, *command[1:]],
            env={**os.environ, **cluster.environ},
            cwd=cluster.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=_prepare,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _end(cluster: SlurmCluster) -> None:
    """End what the daemons left: each job has a process of Slurm's over it."""
    for _ in range(100):
        left = processes_with(f"SLURM_CONF={cluster.folder / 'slurm.conf'}")
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if not left:
            return
        time.sleep(0.02)
    raise RuntimeError(f"these processes of a Slurm cluster do not end: {left}")


def _free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin")


def _prepare() -> None:
    """End with this process, however that ends; and be a host called localhost."""
    pr_set_pdeathsig, clone_newuts = 1, 0x04000000
    libc = ctypes.CDLL(None)
    libc.prctl(pr_set_pdeathsig, signal.SIGKILL)
    if libc.unshare(clone_newuts) != 0:  # the name would be this machine's
        raise PermissionError("no namespace for a host name")
    socket.sethostname("localhost")
