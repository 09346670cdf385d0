"""Every mistake in a sweep file is one line with file, line, key and what is valid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.errors import UserError
from sweeps import expand

HEAD = "name: x\nagents: [sac]\ntasks: [cup-catch]\nseeds: 2\n"
NO_MAPPING = "s.yaml: not a sweep file: the top level must be a mapping with the keys name, agents, tasks"

CASES = {
    "unknown key": (
        HEAD + "sedes: 3\n",
        "s.yaml:5: sedes: unknown key 'sedes': did you mean seeds, overrides, updates?",
    ),
    "unknown key without a near one": (
        HEAD + "resources:\n  slots: 1\n  qqq: 2\n",
        "s.yaml:7: resources.qqq: unknown key of resources 'qqq': valid are checkpoint_every_s, cuda_graphs, device, "
        "env_workers, fleet, gpu_memory_gb, gpus, keep_replay, pack, pad, run_gpu_gb, sinks, slots, threads, video",
    ),
    "key given twice": (
        HEAD + "seeds: 3\n",
        "s.yaml:5: seeds: the key is given twice (first on line 4): keep one",
    ),
    "missing key": ("name: x\nagents: [sac]\nseeds: 2\n", "s.yaml: tasks: the key is missing"),
    "unknown agent": (
        HEAD.replace("sac", "sacc"),
        "s.yaml:2: agents[0]: unknown agent 'sacc': did you mean sac?",
    ),
    "unknown task": (
        HEAD.replace("[cup-catch]", "\n  - cup-catch\n  - cup-catchh"),
        "s.yaml:5: tasks[1]: unknown task or set 'cup-catchh': did you mean cup-catch?",
    ),
    "unknown hyperparameter": (
        "name: x\nagents:\n  sac:\n    hiden_dim: 3\ntasks: [cup-catch]\nseeds: 2\n",
        "s.yaml:4: agents.sac.hiden_dim: unknown hyperparameter of sac 'hiden_dim': did you mean hidden_dim, "
        "hidden_layers, feature_dim?",
    ),
    "hyperparameter of the wrong type": (
        "name: x\nagents:\n  - agent: sac\n    hyperparameters: {hidden_dim: many}\ntasks: [cup-catch]\nseeds: 2\n",
        "s.yaml:4: agents[0].hyperparameters.hidden_dim: sac: hidden_dim = 'many': Input should be a valid integer, "
        "unable to parse string as an integer",
    ),
    "override of no agent": (
        HEAD + "overrides:\n  agent.hidden_dmi: 3\n",
        "s.yaml:6: overrides.agent.hidden_dmi: unknown hyperparameter of sac 'hidden_dmi': did you mean hidden_dim, "
        "hidden_layers?",
    ),
    "override of an agent that is not there": (
        HEAD + "overrides:\n  tdmpc2.horizon: 3\n",
        "s.yaml:6: overrides.tdmpc2.horizon: must be one of agent.<hyperparameter>, sac.<hyperparameter>",
    ),
    "grid value out of range": (
        HEAD + "grid:\n  agent.discount: [0.9, 2]\n",
        "s.yaml:6: grid.agent.discount[1]: sac: discount = 2: Input should be less than or equal to 1",
    ),
    "grid without values": (
        HEAD + "grid: {agent.discount: []}\n",
        "s.yaml:5: grid.agent.discount: []: must not be empty",
    ),
    "grid value twice": (
        HEAD + "grid: {agent.discount: [0.9, 0.9]}\n",
        "s.yaml:5: grid.agent.discount: a value is given twice: keep one",
    ),
    "wrong type": (HEAD + "num_envs: two\n", "s.yaml:5: num_envs: 'two': must be a number"),
    "truth value for a number": (HEAD + "num_envs: true\n", "s.yaml:5: num_envs: True: must be a number"),
    "part of a whole": (HEAD + "num_envs: 1.5\n", "s.yaml:5: num_envs: 1.5: must be a whole number"),
    "out of range": (
        HEAD + "resources: {slots: 0}\n",
        "s.yaml:5: resources.slots: 0: must be greater than or equal to 1",
    ),
    "fleet of no number": (
        HEAD + "resources: {fleet: many}\n",
        "s.yaml:5: resources.fleet.*: 'many': must be a whole number of at least 1, or auto",
    ),
    "pack of an agent that is not there": (
        HEAD + "resources:\n  pack: {tdmpc2: 2}\n",
        "s.yaml:6: resources.pack.tdmpc2: unknown agent of this sweep 'tdmpc2': valid are sac",
    ),
    "unknown device": (
        HEAD + "resources: {device: gpu}\n",
        "s.yaml:5: resources.device: 'gpu': must be 'auto', 'cpu' or 'cuda'",
    ),
    "name that is no folder": (
        HEAD.replace("name: x", "name: ../x"),
        "s.yaml:1: name: '../x': must be letters, digits, '_', '-' and '.'",
    ),
    "no tasks": (HEAD.replace("[cup-catch]", "[]"), "s.yaml:3: tasks: []: must not be empty"),
    "no agents": (HEAD.replace("[sac]", "{}"), "s.yaml:2: agents: []: must not be empty"),
    "no seeds": (HEAD.replace("seeds: 2", "seeds: []"), "s.yaml:4: seeds: []: must not be empty"),
    "seed twice": (
        HEAD.replace("seeds: 2", "seeds: [1, 1]"),
        "s.yaml:4: seeds: [1, 1]: a seed is given twice: keep one",
    ),
    "everything excluded": (
        HEAD + "exclude: [{agent: sac}]\n",
        "s.yaml:5: exclude: the matrix is empty: every run is excluded",
    ),
    "exclusion of nothing": (
        HEAD + "exclude:\n  - {agent: sac, seed: 7}\n",
        "s.yaml:6: exclude[0]: matches no run of this sweep",
    ),
    "exclusion of an unknown agent": (
        HEAD + "exclude:\n  - {agent: tdmpc2}\n",
        "s.yaml:6: exclude[0].agent: unknown agent of this sweep 'tdmpc2': valid are sac",
    ),
    "empty exclusion": (
        HEAD + "exclude: [{}]\n",
        "s.yaml:5: exclude[0]: excludes everything: give one of agent, variant, task, seed",
    ),
    "budget of another task": (
        HEAD + "env_steps: {cup-spin: 100}\n",
        "s.yaml:5: env_steps.cup-spin: names no task of this sweep",
    ),
    "budget of an unknown task": (
        HEAD + "env_steps: {cup-spinn: 100}\n",
        "s.yaml:5: env_steps.cup-spinn: unknown task or set 'cup-spinn': did you mean cup-spin, "
        "pendulum-spin, finger-spin?",
    ),
    "budget below an agent step": (
        HEAD + "env_steps: 1\n",
        "s.yaml:5: env_steps: 1 is less than one agent step of cup-catch (2 env steps)",
    ),
    "evaluation more often than agent steps": (
        HEAD + "eval_every_env_steps: 1\n",
        "s.yaml:5: eval_every_env_steps: 1 is less than one agent step of cup-catch (2 env steps)",
    ),
    "observation kind": (
        "name: x\nagents:\n  - {agent: sac, obs: sound}\ntasks: [cup-catch]\nseeds: 2\n",
        "s.yaml:3: agents[0].obs: 'sound': must be 'state' or 'rgb'",
    ),
    "two variants of one name": (
        "name: x\nagents:\n  - sac\n  - sac\ntasks: [cup-catch]\nseeds: 2\n",
        "s.yaml:2: agents: 2 entries of sac are named 'default': give each its own `variant`",
    ),
    "two variants that are one": (
        "name: x\nagents:\n  - sac\n  - {agent: sac, variant: b}\ntasks: [cup-catch]\nseeds: 2\n",
        "s.yaml:2: agents: 2 variants of sac have the same hyperparameters on cup-catch: keep or exclude all but one",
    ),
    "no mapping": (
        "- a\n- b\n",
        "s.yaml: not a sweep file: the top level must be a mapping with the keys name, agents, tasks",
    ),
    "empty file": ("", NO_MAPPING),
    "not YAML": ("name: [x\nagents: 3\n", "s.yaml:2: not valid YAML: expected ',' or ']', but got ':'"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line(case: str, write: Callable[[str], Path]) -> None:
    text, expected = CASES[case]
    path = write(text)
    with pytest.raises(UserError) as caught:
        expand.load(path)
    assert str(caught.value) == f"{path.parent}/{expected}"


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.yaml: cannot be read: No such file or directory; give a sweep file"):
        expand.load(tmp_path / "no.yaml")


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("slots", "--set 'slots': write key=value, for example resources.slots=2 or agent.horizon=5"),
        ("agent.horizon=[", "'[' is not a YAML value: quote it, or give a number, a name or [a, list]"),
        ("seedz=1", "s.yaml: seedz: unknown key 'seedz': did you mean seeds?"),
        ("agent.x=1", "s.yaml: overrides.agent.x: unknown hyperparameter of sac 'x': valid are "),
        ("seeds.a=1", "--set 'seeds.a=1': seeds is no mapping in "),
    ],
)
def test_assignments(assignment: str, expected: str, write: Callable[[], Path]) -> None:
    path = write()
    with pytest.raises(UserError) as caught:
        expand.load(path, [assignment])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
