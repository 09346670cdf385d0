"""Checks of an agent's fleets: a run is in any fleet what it is alone, whatever becomes of the others.

`bench.agent_checks` has them in its list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.agent_probe import EXACT, UPDATES, Failed, Probe, Skipped, difference, leaves

CLOSE = 2e-3
"""Tolerance of the same sums in another order, which training amplifies."""


def equals_single_runs(probe: Probe) -> None:
    """Each run of a fleet acts and learns as it does alone."""
    _needs_fleet(probe)
    everyone = range(probe.runs)
    fleet = probe.prepared()
    together = [probe.go_on(fleet, everyone, fresh=True), probe.act(fleet, explore=False)]
    for run in everyone:
        single = probe.prepared([run])
        alone = [probe.go_on(single, [run], fresh=True), probe.act(single, explore=False, runs=[run])]
        if where := difference(_of_runs(together, [run]), alone, CLOSE):
            raise Failed(f"run {run} of a fleet of {probe.runs} is another one than alone (first at {where})")


def regroups(probe: Probe) -> None:
    """Saved runs, put together as other fleets, go on as they would have."""
    _needs_fleet(probe)
    agent = probe.trained()
    states = [agent.state_dict(run) for run in range(probe.runs)]
    whole = [probe.act(agent, explore=False), probe.go_on(agent, range(probe.runs))]
    for runs in ([probe.runs - 1, 0], [1]):
        other = probe.agent(runs)
        other.load_state_dict(probe.through_a_file([states[run] for run in runs]))
        parts = [probe.act(other, explore=False, runs=runs), probe.go_on(other, runs)]
        if where := difference(_of_runs(whole, runs), parts, CLOSE):
            raise Failed(
                f"runs {runs} of a fleet, put together anew, do not go on as they would have (first at {where})"
            )


def isolates_nan(probe: Probe) -> None:
    """A run whose rewards are not a number shows it, and no other run notices."""
    ill, others = 0, list(range(1, probe.runs))
    told: list[list[Any]] = []
    for poison in (False, True):
        agent = probe.trained()
        seen: list[Any] = []
        for number, batch in enumerate(probe.batches[:UPDATES]):
            seen.append(dict(agent.update(probe.poisoned(batch, ill) if poison else batch)))
            seen.append(probe.act(agent, explore=True, seed=number, is_first=number == 0))
            seen.append(probe.act(agent, explore=False, seed=number, is_first=number == 0))
        told.append(seen)
    if others and (where := difference(_of_runs(told[0], others), _of_runs(told[1], others), EXACT)):
        raise Failed(f"one run that is not a number reaches the others (first at {where})")
    said = [value for _, value in leaves(_of_runs(told[1], [ill]))]
    if all(value.isfinite().all() for value in said):
        raise Failed("rewards that are not a number show neither in the metrics nor in the actions")


def _of_runs(value: Any, runs: Sequence[int]) -> Any:
    """The part of some runs of nested lists and dicts of (R, …) tensors."""
    if isinstance(value, dict):
        return {key: _of_runs(item, runs) for key, item in value.items()}
    if isinstance(value, list):
        return [_of_runs(item, runs) for item in value]
    return value[list(runs)]


def _needs_fleet(probe: Probe) -> None:
    if probe.runs == 1:
        raise Skipped("max_fleet is 1")
