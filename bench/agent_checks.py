"""Checks that an agent keeps the protocol (`agents.protocol`): the same for the suite's agents and for a user's own.

Each check plays with small fleets of the agent in a made-up world (random observations, rewards and ends), so that no
simulator is needed. What fails is one line. `bench agents check NAME` runs them, and so do the tests, for every agent
of the registry.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from agents.protocol import Agent, Batch, Observing
from bench import agent_fleet_checks, contract
from bench.agent_probe import (
    CPU,
    EXACT,
    UPDATES,
    Failed,
    Probe,
    Skipped,
    difference,
    leaves,
    select,
    trained_parameters,
    unmoved,
)
from bench.errors import UserError


def _describes_itself(probe: Probe) -> None:
    agent_class = probe.entry.load()
    contract.check_class(agent_class)
    for member in ("obs_kinds", "max_fleet"):
        told, is_ = getattr(probe.entry, member), getattr(agent_class, member)
        if told != is_:
            raise Failed(f"the registry says {member} = {told!r}, the class {is_!r}")
    contract.check_instance(probe.agent())


def _acts_within_bounds(probe: Probe) -> None:
    for num_envs in (1, 3):
        agent = probe.agent(num_envs=num_envs)
        shape = (probe.runs, num_envs, probe.spec.action_size)
        for explore in (True, False):
            for is_first in (True, False):
                obs = probe.obs(num_envs, seed=int(is_first))
                given = obs.clone()
                action = agent.act(obs, torch.full(shape[:2], is_first), explore)
                contract.check_action(agent, action, shape, CPU)
                contract.check_range(agent, float(action.abs().max()))
                if not action.isfinite().all():
                    raise Failed(f"act(explore={explore}) gives an action that is not a number")
                if not torch.equal(obs, given):
                    raise Failed(f"act(explore={explore}) writes into the observations that it is given")


def _counts_updates(probe: Probe) -> None:
    agent = probe.agent()
    start = agent.seed_agent_steps
    points = sorted({0, 1, *(max(0, start + near) for near in (-1, 0, 1, 2, 3, 7, 20, 100, 1000))})
    for before, middle, after in zip(points, points[1:], points[2:], strict=False):
        parts = [agent.updates_due(before, middle), agent.updates_due(middle, after)]
        whole = agent.updates_due(before, after)
        for due in (*parts, whole):
            contract.check_updates_due(agent, due)
        if sum(parts) != whole:
            raise Failed(
                f"updates_due({before}, {middle}) + updates_due({middle}, {after}) = {sum(parts)}, "
                f"but updates_due({before}, {after}) = {whole}"
            )
    if agent.updates_due(0, points[-1]) == 0:
        raise Failed(f"updates_due owes nothing in the first {points[-1]} agent steps: the agent would never learn")


def _reports_metrics(probe: Probe) -> None:
    agent, names = probe.prepared(), None
    for batch in probe.batches[:UPDATES]:
        given = select(batch, range(probe.runs))
        metrics = agent.update(batch)
        contract.check_metrics(agent, metrics, probe.runs)
        for name, value in metrics.items():
            if not value.isfinite().all():
                raise Failed(f"update reports {name} = {value.tolist()}")
        if names is not None and list(metrics) != names:
            raise Failed(f"update reports {list(metrics)} after {names}: it must report the same names each time")
        names = list(metrics)
        _set_priorities(agent, batch)
        if difference(vars(given), vars(replace(batch, priority=given.priority)), EXACT):
            raise Failed("update writes into the batch that it is given")


def _set_priorities(agent: Agent, batch: Batch) -> None:
    if agent.replay.draw != "prioritised" or batch.start is None:
        return
    given = batch.priority
    if given is None or given.shape != batch.start.shape or not (given.isfinite() & (given > 0)).all():
        raise Failed(
            f"update must set batch.priority, {tuple(batch.start.shape)} numbers above 0, for prioritised draws"
        )


def _trains_its_parameters(probe: Probe) -> None:
    agent = probe.prepared()
    parameters = trained_parameters(agent)
    if not parameters:
        raise Skipped("no torch.optim optimiser found among the agent's attributes")
    before = {name: value.detach().clone() for name, value in parameters.items()}
    agent.update(probe.batches[0])
    learned = {name: value.detach().clone() for name, value in parameters.items()}
    for explore in (True, False, True):
        probe.act(agent, explore)
    agent.state_dict(0)
    for name, value in parameters.items():
        if not torch.equal(value, learned[name]):
            raise Failed(f"{name} changes by acting: parameters may change in update alone")
    for batch in probe.batches[1:]:
        agent.update(batch)
    for name, value in parameters.items():
        for run in unmoved(before[name], value, probe.runs):
            raise Failed(f"{name} of run {run} does not change in {len(probe.batches)} updates")


def _evaluates_repeatably(probe: Probe) -> None:
    agent = probe.trained()
    states = [agent.state_dict(run) for run in range(probe.runs)]
    answers = []
    for _ in range(2):
        other = probe.agent()
        other.load_state_dict(states)
        answers.append([probe.act(other, explore=False, seed=number, is_first=number == 0) for number in range(2)])
    if not all(map(torch.equal, *answers)):
        raise Failed("two agents with the same state give different evaluation actions")


def _trains_without_noticing_evaluation(probe: Probe) -> None:
    told: list[list[Any]] = []
    for evaluate in (False, True):
        agent = probe.prepared()
        seen: list[Any] = []
        for number, batch in enumerate(probe.batches[:UPDATES]):
            seen.append(probe.act(agent, explore=True, seed=number, is_first=number == 0))
            if evaluate:
                probe.act(agent, explore=False, num_envs=2)
            seen.append(dict(agent.update(batch)))
        told.append(seen)
    if where := difference(told[0], told[1], EXACT):
        raise Failed(f"training is another one with evaluation in between (first in {_place(where)})")


def _place(where: str) -> str:
    """`[3].critic_loss` of an alternation of actions and metrics, in words."""
    number, _, metric = where.removeprefix("[").partition("]")
    return (
        f"update {int(number) // 2 + 1}'s {metric.lstrip('.')}"
        if metric
        else f"exploring action {int(number) // 2 + 1}"
    )


def _resumes_exactly(probe: Probe) -> None:
    agent, everyone = probe.trained(), range(probe.runs)
    states = [agent.state_dict(run) for run in everyone]
    told = probe.go_on(agent, everyone)
    for resumed in (probe.agent(), probe.trained(updates=4)):  # the state that it is in must not matter
        resumed.load_state_dict(probe.through_a_file(states))
        if where := difference(told, probe.go_on(resumed, everyone), EXACT):
            raise Failed(f"an agent resumed from its state does not go on as it would have (first in {_place(where)})")
        for run in everyone:
            if where := difference(agent.state_dict(run), resumed.state_dict(run), EXACT):
                raise Failed(f"after a resume and {UPDATES} updates, state_dict differs in {where}")


def _saves_plain_values(probe: Probe) -> None:
    agent = probe.trained()
    for run in range(probe.runs):
        for where, value in leaves(agent.state_dict(run)):
            if isinstance(value, Tensor) and value.device.type != "cpu":
                raise Failed(f"state_dict: {where} is on {value.device}: bring it to the CPU")
            if not isinstance(value, Tensor | bool | int | float | str | None):
                raise Failed(f"state_dict: {where} is a {type(value).__name__}: tensors, numbers and strings alone")
        probe.through_a_file([agent.state_dict(run)])


def _moves_between_devices(probe: Probe) -> None:
    if not torch.cuda.is_available():
        raise Skipped("no CUDA device here")
    cuda = torch.device("cuda")
    agent = probe.trained()
    states = [agent.state_dict(run) for run in range(probe.runs)]
    there = probe.agent(device=cuda)
    there.load_state_dict(states)
    back = probe.agent()
    back.load_state_dict([there.state_dict(run) for run in range(probe.runs)])
    if where := difference(_weights(agent), _weights(back), EXACT):
        raise Failed(f"{where} does not survive the way to a CUDA device and back")
    for batch in probe.batches[:UPDATES]:
        contract.check_metrics(there, there.update(probe.on(batch, cuda)), probe.runs)
    obs = probe.obs(1, seed=0).to(cuda)
    action = there.act(obs, torch.ones(probe.runs, 1, dtype=torch.bool, device=cuda), explore=True)
    contract.check_action(there, action, (probe.runs, 1, probe.spec.action_size), cuda)


def _weights(agent: Agent) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in trained_parameters(agent).items()}


def _follows_its_environments(probe: Probe) -> None:
    if not isinstance(probe.agent(), Observing):
        raise Skipped("no observe method")
    agent, before = probe.agent(), probe.agent().state_dict(0)
    probe.observe(agent)
    if difference(before, agent.state_dict(0), EXACT) is None:
        raise Failed("what observe takes in is not part of state_dict: a resumed run would lose it")


@dataclass(frozen=True)
class Check:
    """One rule of the protocol."""

    name: str
    rule: str
    run: Callable[[Probe], None]


CHECKS = (
    Check("class", "members, hyperparameters and the registry's row", _describes_itself),
    Check("actions", "float32 (R, N, A) in [-1, 1], for any number of environments", _acts_within_bounds),
    Check("updates_due", "whole numbers that add up, however the steps are cut", _counts_updates),
    Check("metrics", "(R,) each, finite, of the same names; the batch is left alone", _reports_metrics),
    Check("parameters", "change in update, all of them, and in nothing else", _trains_its_parameters),
    Check("observe", "what an agent follows is part of its state", _follows_its_environments),
    Check("evaluation", "the same state gives the same actions", _evaluates_repeatably),
    Check("independence", "training does not notice evaluation", _trains_without_noticing_evaluation),
    Check("state", "plain values on the CPU that torch loads with weights_only=True", _saves_plain_values),
    Check("resume", "goes on exactly", _resumes_exactly),
    Check("fleet", "a fleet of three is three single runs", agent_fleet_checks.equals_single_runs),
    Check("regroup", "runs of a fleet go on in another one", agent_fleet_checks.regroups),
    Check("nan", "a run that is not a number says so and leaves the others alone", agent_fleet_checks.isolates_nan),
    Check("devices", "a state moves between CPU and CUDA", _moves_between_devices),
)


@dataclass(frozen=True)
class Outcome:
    """How a check ended."""

    check: Check
    state: str
    """ok, failed or skipped."""
    line: str = ""
    wall_s: float = 0.0


def run_check(check: Check, probe: Probe) -> Outcome:
    """Run one check; whatever goes wrong in the agent becomes one line."""
    begin = time.perf_counter()
    state, line = "ok", ""
    try:
        check.run(probe)
    except Skipped as why:
        state, line = "skipped", str(why)
    except (Failed, UserError) as why:
        state, line = "failed", str(why)
    except Exception as error:  # noqa: BLE001 - an agent may fail in any way, and the other checks still run
        state, line = "failed", f"{type(error).__name__}: {' '.join(str(error).split())}{_raised_in(error)}"
    return Outcome(check, state, line, time.perf_counter() - begin)


def _raised_in(error: BaseException) -> str:
    """Where in the agent's code an error came up."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if "/torch/" not in code.co_filename:
            place = f" ({code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}, {code.co_name})"
        trace = trace.tb_next
    return place
