"""A real Slurm of two nodes on this machine, for tests: all its files in one folder, on ports of its own, no systemd.

Needs the Debian packages slurmctld, slurmd, slurm-client and munge; with accounting also slurmdbd, mariadb-server-core
and mariadb-client-core. Every daemon is started in the foreground and ended by its pid.
"""

from __future__ import annotations

import contextlib
import ctypes
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

DAEMONS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scancel")
ACCOUNTING_DAEMONS = ("slurmdbd", "mariadbd", "mariadb-install-db", "sacctmgr")
SYSTEM_PATHS = ("/usr/sbin", "/usr/local/sbin", "/sbin")
START_TIMEOUT_S = 30.0
PR_SET_PDEATHSIG = 1

SLURM_CONF = """\
ClusterName=bench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=2,sched_min_interval=0,bf_continue
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
MaxArraySize=1001
KillWait=5
SlurmdTimeout=10
SlurmctldTimeout=10
MinJobAge=300
ReturnToService=2
FirstJobId={first_job_id}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
{accounting}
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1_port} CPUs=8 RealMemory=8000 Gres=gpu:4
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2_port} CPUs=8 RealMemory=8000 Gres=gpu:4
PartitionName=main Nodes=ALL Default=YES DefaultTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=ALL DefaultTime=60 PriorityTier=10 PreemptMode=OFF
"""

ACCOUNTING_CONF = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePass={folder}/munge.sock
AccountingStoragePort={port}
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations,limits,qos
"""

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={user}
StorageType=accounting_storage/mysql
StorageUser={user}
StorageLoc=slurm_acct
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
"""


def lacking(accounting: bool = False) -> str | None:
    """Why no Slurm can be started here; None where one can."""
    needed = DAEMONS + (ACCOUNTING_DAEMONS if accounting else ())
    absent = [name for name in needed if _which(name) is None]
    return f"no {', '.join(absent)} here (Debian: apt-get install {PACKAGES})" if absent else None


PACKAGES = "slurmctld slurmd slurmdbd slurm-client munge mariadb-server-core mariadb-client-core"


def _which(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(SYSTEM_PATHS))


def _die_with_parent() -> None:
    """So that no daemon outlives a test run that is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class SlurmCluster:
    """Two nodes, `n1` and `n2`, of 8 CPUs and 4 fake GPUs each; partitions `main` (default) and `high` (preempts it).

    Args:
        accounting: with slurmdbd and its database, so that sacct and the limits of associations work.
    """

    nodes = ("n1", "n2")

    def __init__(self, accounting: bool = False) -> None:
        self.accounting = accounting
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.folder.chmod(0o755)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.env = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._configure()

    def _configure(self) -> None:
        host, user = socket.gethostname().split(".")[0], getpass.getuser()
        controller, n1, n2, self.dbd_port = _free_ports(4)
        accounting = ACCOUNTING_CONF.format(folder=self.folder, port=self.dbd_port) if self.accounting else ""
        values = {
            "host": host,
            "user": user,
            "folder": self.folder,
            "controller_port": controller,
            "n1_port": n1,
            "n2_port": n2,
            "first_job_id": int(time.time()) % 1_000_000 + 1000,
            "accounting": accounting,
        }
        (self.folder / "slurm.conf").write_text(SLURM_CONF.format(**values))
        devices = self.folder / "dev"
        devices.mkdir()
        for index in range(4):
            (devices / f"nvidia{index}").symlink_to("/dev/null")
        lines = [f"NodeName={node} Name=gpu File={devices}/nvidia[0-3]\n" for node in self.nodes]
        (self.folder / "gres.conf").write_text("".join(lines))
        (self.folder / "state").mkdir()
        for node in self.nodes:
            (self.folder / f"spool-{node}").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        dbd = self.folder / "slurmdbd.conf"
        dbd.write_text(SLURMDBD_CONF.format(host=host, user=user, folder=self.folder, port=self.dbd_port))
        dbd.chmod(0o600)

    # Daemons

    def start(self) -> None:
        """Start everything and wait until both nodes are idle."""
        folder = self.folder
        munge = [f"--{name}={folder}/munge.{end}" for name, end in (("key-file", "key"), ("socket", "sock"))]
        munge += [f"--{name}={folder}/munge.{end}" for name, end in (("pid-file", "pid"), ("log-file", "log"))]
        self._spawn("munged", "munged", "-F", "--force", f"--seed-file={folder}/munge.seed", *munge)
        self._wait("munge", lambda: (folder / "munge.sock").exists())
        if self.accounting:
            self._start_accounting()
        self.start_controller(fresh=True)
        for node in self.nodes:
            self.start_node(node)
        self._wait("idle nodes", lambda: self.node_states() == {"idle"})

    def start_controller(self, fresh: bool = False) -> None:
        """Start slurmctld; it takes up the jobs of its saved state unless it is to be fresh."""
        self._spawn("slurmctld", "slurmctld", "-D", *(["-i"] if fresh else []))
        self._wait("slurmctld", lambda: "UP" in self.run("scontrol", "ping", check=False).stdout)

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        self._spawn(f"slurmd-{node}", "slurmd", "-D", "-N", node)

    def wait_until_saved(self) -> None:
        """Until slurmctld has written down what its jobs do now, which it does some seconds late. Killed before, it
        takes a job that runs for one that waits, and holds it."""
        asked = time.time()
        for job in set(self.run("squeue", "-h", "-o", "%A").stdout.split()):
            self.run("scontrol", "update", f"JobId={job}", "Comment=saved")  # else nothing more may be written
        self._wait("saved jobs", lambda: (self.folder / "state" / "job_state").stat().st_mtime > asked)

    def kill(self, name: str) -> None:
        """SIGKILL for one daemon: `slurmctld`, `slurmd-n1`, …; what it started lives on."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def clear(self) -> None:
        """Cancel every job and wait until the queue is empty; start again what a test killed."""
        if "slurmctld" not in self.processes:
            self.start_controller()
        for node in self.nodes:
            if f"slurmd-{node}" not in self.processes:
                self.start_node(node)
        self.run("scancel", f"--user={getpass.getuser()}", check=False)
        self._wait("empty queue", lambda: not self.run("squeue", "-h", check=False).stdout.strip())
        self._wait("idle nodes", lambda: self.node_states() == {"idle"})

    def stop(self) -> None:
        """Cancel every job, end the daemons, remove the folder."""
        if "slurmctld" in self.processes:
            with contextlib.suppress(AssertionError, subprocess.SubprocessError):
                self.run("scancel", f"--user={getpass.getuser()}", check=False)
                self._wait("empty queue", lambda: not self.run("squeue", "-h", check=False).stdout.strip(), 15.0)
        for process in reversed(self.processes.values()):
            process.terminate()
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _spawn(self, name: str, program: str, *arguments: str) -> None:
        path = _which(program)
        assert path is not None, f"{program} is not installed"
        with (self.folder / f"{name}.out").open("ab") as output:
            self.processes[name] = subprocess.Popen(
                [path, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self.env, "MYSQL_UNIX_PORT": str(self.folder / "mariadb.sock")},
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def _start_accounting(self) -> None:
        data, sock = self.folder / "mariadb", self.folder / "mariadb.sock"
        install = [_which("mariadb-install-db"), "--no-defaults", f"--datadir={data}", "--skip-test-db"]
        install += ["--auth-root-authentication-method=normal", f"--user={getpass.getuser()}"]
        subprocess.run([str(part) for part in install], check=True, capture_output=True)
        self._spawn(
            "mariadbd",
            "mariadbd",
            "--no-defaults",
            f"--datadir={data}",
            f"--socket={sock}",
            f"--pid-file={self.folder}/mariadb.pid",
            f"--user={getpass.getuser()}",
            "--skip-networking",
            "--skip-grant-tables",
        )
        self._wait("mariadb", sock.exists)
        self._spawn("slurmdbd", "slurmdbd", "-D")
        show = ("sacctmgr", "-n", "show", "cluster")
        self._wait("slurmdbd", lambda: self.run(*show, check=False).returncode == 0)
        user = getpass.getuser()
        self.run("sacctmgr", "-i", "add", "cluster", "bench", check=False)
        self.run("sacctmgr", "-i", "add", "account", "lab")
        self.run("sacctmgr", "-i", "add", "user", user, "account=lab", check=False)
        self.run("sacctmgr", "-i", "modify", "user", user, "set", "DefaultAccount=lab", check=False)

    # Clients

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a client command against this cluster."""
        env = {**os.environ, **self.env}
        return subprocess.run(command, capture_output=True, text=True, env=env, check=check, timeout=60)

    def node_states(self) -> set[str]:
        """The states of the nodes, as sinfo names them."""
        return set(self.run("sinfo", "-h", "-N", "-o", "%T", check=False).stdout.split())

    def _wait(self, what: str, condition: Callable[[], bool], timeout_s: float = START_TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"no {what}: {self.tails()}"
            time.sleep(0.1)

    def tails(self) -> str:
        """The last lines that every daemon wrote."""
        logs = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-1000:]}" for log in logs)


@contextlib.contextmanager
def running(accounting: bool = False) -> Iterator[SlurmCluster]:
    """A cluster that is started, and stopped whatever happens."""
    cluster = SlurmCluster(accounting)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
