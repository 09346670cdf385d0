"""What a cluster and its accounting allow this user to submit, as scontrol and squeue tell."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bench.processes import user_name
from sweeps.slurm_state import SlurmSilent, answer, ask

DEFAULT_MAX_ARRAY_SIZE = 1001
"""Slurm's own default."""


@dataclass(frozen=True)
class Limits:
    """How much may be submitted."""

    max_array_size: int
    """Most tasks of one array."""
    max_submit: int | None = None
    """Most jobs of this user in the queue, each task of an array counted; None where nothing says."""
    queued: int = 0
    """Jobs of this user in the queue now."""
    source: str = ""
    """What sets `max_submit`."""

    @property
    def submittable(self) -> int | None:
        """Jobs that may be submitted now; None for no limit."""
        return None if self.max_submit is None else max(0, self.max_submit - self.queued)


def read(account: str | None, qos: str | None) -> Limits:
    """Ask Slurm.

    Args:
        account, qos: of the jobs to be submitted; the user's default ones where they are None.

    Raises:
        SlurmSilent: no scontrol, or the controller does not answer.
    """
    config = ask("scontrol", "show", "config")
    size = re.search(r"^MaxArraySize\s*=\s*(\d+)", config, re.MULTILINE)
    max_array_size = int(size[1]) if size else DEFAULT_MAX_ARRAY_SIZE
    enforced = re.search(r"^AccountingStorageEnforce\s*=\s*(.*)$", config, re.MULTILINE)
    found = _submit_limits(account, qos) if enforced and "limits" in enforced[1] else {}
    if not found:
        return Limits(max_array_size)
    source = min(found, key=lambda name: found[name])
    queued = len(ask("squeue", "--noheader", "--array", f"--user={user_name()}", "--format=%i").split())
    return Limits(max_array_size, found[source], queued, source)


@dataclass(frozen=True)
class Partition:
    """What a partition allows."""

    default: bool
    """Whether it takes jobs that name none."""
    max_min: int | None
    """Longest time limit in minutes; None for no limit."""


def partitions() -> dict[str, Partition]:
    """The cluster's partitions by name."""
    found = {}
    for line in ask("scontrol", "show", "partition", "--oneliner").splitlines():
        values = dict(word.partition("=")[::2] for word in line.split())
        if "PartitionName" in values:
            limit = _minutes(values.get("MaxTime", "UNLIMITED"))
            found[values["PartitionName"]] = Partition(values.get("Default") == "YES", limit)
    return found


def _minutes(text: str) -> int | None:
    """Minutes of Slurm's `days-hours:minutes:seconds`, its days optional; None for UNLIMITED and the like."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, _seconds = (int(part or 0) for part in match.groups())
    return (24 * days + hours) * 60 + minutes


def shares(total: int, parts: int) -> list[int]:
    """`total` in `parts` nearly equal whole parts, none below one."""
    return [max(1, total * (part + 1) // parts - total * part // parts) for part in range(parts)]


_PASSES = re.compile(
    r"contact slurm|timed out|socket|connection|transport|zero bytes|temporarily|communication|respond|try again"
    r"|unexpected message",
    re.IGNORECASE,
)


def passes(words: str) -> bool:
    """Whether a refusal of sbatch in these words is one of the network or a busy controller, not of the job."""
    return not words or _PASSES.search(words) is not None


def test_only(script: str) -> None:
    """Ask sbatch whether it would take a script.

    Raises:
        SlurmSilent: it would not, in its words.
    """
    done = answer(["sbatch", "--test-only"], passes, script)
    if done.returncode != 0:
        lines = [line.partition("error: ")[2] or line for line in done.stderr.strip().splitlines()]
        raise SlurmSilent("; ".join(lines) or f"exit code {done.returncode}")


def _submit_limits(account: str | None, qos: str | None) -> dict[str, int]:
    """Every MaxSubmitJobs that concerns this user: what sets it -> how many. Nothing where scontrol may not say."""
    user = user_name()
    try:
        text = ask("scontrol", "show", "assoc_mgr", f"users={user}", "flags=users,assoc,qos")
    except SlurmSilent:
        return {}
    account = account or _first(r"UserName=\S+ DefAccount=(\S*)", text)
    found: dict[str, int] = {}
    for association in re.split(r"\n(?=ClusterName=)", text):
        if f" UserName={user}(" in association and (account is None or f" Account={account} " in association):
            _note(found, f"MaxSubmitJobs of account {account}", r"\bMaxSubmitJobs=(\d+)\(", association)
    for record in re.split(r"\n(?=QOS=)", text):
        name = _first(r"^QOS=([^\s(]+)", record)
        if name is not None and name == (qos or "normal"):
            _note(found, f"MaxSubmitJobsPU of qos {name}", r"\bMaxSubmitJobsPU=(\d+)\b", record)
    return found


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match[1] or None if match else None


def _note(found: dict[str, int], name: str, pattern: str, text: str) -> None:
    value = _first(pattern, text)
    if value is not None:
        found[name] = int(value)
