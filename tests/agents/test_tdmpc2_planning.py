from dataclasses import replace

import pytest
import torch
from plain_tdmpc2 import CPU, SMALL, SPEC, PlainRun, make_agent, record

from agents.tdmpc2.agent import TDMPC2
from agents.tdmpc2.hyperparameters import Hyperparameters

CLOSE = {"rtol": 1e-7, "atol": 1e-9}
FEW = {"num_samples": 8, "num_elites": 3, "num_pi_trajs": 2, "iterations": 2}
"""Candidates for the plain version, which takes them one by one."""


def firsts(value, runs=3, envs=1):
    return torch.full((runs, envs), value, dtype=torch.bool)


@pytest.mark.usefixtures("double")
class TestAgainstThePlainVersion:
    @pytest.mark.parametrize(
        ("explore", "overrides"),
        [
            (True, {}),
            (False, {"horizon": 2}),
            (True, {"num_pi_trajs": 0, "temperature": 2.0}),
            (False, {"episodic": True}),
            (True, {"preset": "paper"}),
            (False, {"uncertainty_coef": 0.5, "simnorm": False}),
            (False, {"regression": "continuous", "layer_norm": False}),
        ],
    )
    def test_plan_candidate_by_candidate(self, explore, overrides):
        agent = make_agent(seeds=(1, 2), num_envs=2, **FEW | overrides)
        stream, horizon = ("explore" if explore else "evaluate"), agent.hp.horizon
        obs = torch.randn(3, 2, 2, 5, generator=torch.Generator().manual_seed(0))
        starts = torch.zeros(2, 2, horizon, 2)  # (R, N, H, A)
        for call, first in enumerate([firsts(True, 2, 2), torch.tensor([[False, True], [False, False]])]):
            draws = record(agent, stream)
            action = agent.act(obs[call], first, explore)
            for run in range(2):
                reference = PlainRun(agent, run)
                for env in range(2):
                    start = torch.zeros(horizon, 2) if first[run, env] else starts[run, env]
                    expected, mean = reference.plan(obs[call, run, env], start, env, draws.of_run(run), 2, explore)
                    torch.testing.assert_close(action[run, env], expected, **CLOSE)
                    starts[run, env] = torch.cat([mean[1:], torch.zeros(1, 2)])

    def test_three_runs_act_as_three_single_runs(self):
        fleet = make_agent(num_envs=2)
        singles = [make_agent(seeds=(seed,), num_envs=2) for seed in (1, 2, 3)]
        for call in range(3):
            obs = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(call))
            for explore in (True, False):
                action = fleet.act(obs, firsts(call == 0, 3, 2), explore)
                assert action.shape == (3, 2, 2)
                for run, single in enumerate(singles):
                    alone = single.act(obs[run : run + 1], firsts(call == 0, 1, 2), explore)
                    torch.testing.assert_close(action[run], alone[0], **CLOSE)

    def test_policy_acts_without_planning(self):
        agent = make_agent(mpc=False)
        obs = torch.randn(3, 1, 5)
        mean, log_std = agent.model.policy(agent.model.encode(obs, agent.noise["evaluate"]))
        torch.testing.assert_close(agent.act(obs, firsts(True), False), mean.tanh())
        draws = record(agent, "explore")
        action = agent.act(obs, firsts(True), True)
        torch.testing.assert_close(action, (mean + draws.drawn[0] * log_std.exp()).tanh())


def test_nothing_counts_after_a_predicted_termination():
    """The reward of the step that ends the episode does; with no end in sight all is as without the head."""
    agent, endless, plain = (make_agent(seeds=(1,), episodic=episodic) for episodic in (True, True, False))
    for number in (agent, endless):
        for name, parameter in plain.model.named_parameters():
            number.model.get_parameter(name).data.copy_(parameter.data)
        for parameter in number.model.termination_head.parameters():
            parameter.data.zero_()
    agent.model.termination_head.last.bias.data.fill_(9.0)
    endless.model.termination_head.last.bias.data.fill_(-9.0)
    z, actions = torch.randn(1, 1, 1, 8), torch.rand(1, 3, 1, 20, 2)
    values = [one.planner.estimate_value(z, actions, one.noise["evaluate"]) for one in (agent, endless, plain)]
    reward = plain.scalars.decode(plain.model.reward(z, actions[:, 0]))
    torch.testing.assert_close(values[0], reward)
    torch.testing.assert_close(values[1], values[2])
    assert not torch.allclose(values[0], values[1])


def test_evaluation_leaves_training_alone_and_may_have_other_environments():
    quiet, disturbed = make_agent(), make_agent()
    for call in range(3):
        obs = torch.randn(3, 1, 5, generator=torch.Generator().manual_seed(call))
        expected = quiet.act(obs, firsts(call == 0), True)
        for envs in (4, 10):
            shape = disturbed.act(torch.randn(3, envs, 5), firsts(call == 0, 3, envs), False).shape
            assert shape == (3, envs, 2)
        assert torch.equal(disturbed.act(obs, firsts(call == 0), True), expected)


def test_actions_are_bounded_and_evaluation_is_stochastic():
    agent = make_agent()
    obs = torch.randn(3, 1, 5)
    actions = torch.stack([agent.act(obs, firsts(True), explore) for explore in (True, False) for _ in range(20)])
    assert float(actions.abs().max()) <= 1
    assert float(actions[20:].std(0).min()) > 0


@pytest.mark.parametrize(("action_size", "iterations"), [(19, 3), (20, 5)])
def test_large_actions_take_two_more_iterations(action_size, iterations):
    hp = Hyperparameters(**SMALL)
    for _ in range(2):  # building one agent changes nothing for the next
        agent = TDMPC2(replace(SPEC, action_size=action_size), hp, [1], CPU)
        calls = []
        estimate_value = agent.planner.estimate_value
        agent.planner.estimate_value = lambda *args, e=estimate_value, c=calls: c.append(1) or e(*args)
        agent.act(torch.randn(1, 1, 5), firsts(True, 1), True)
        assert len(calls) == iterations
    assert hp.iterations == 3


def test_planning_finds_the_best_action_of_a_known_model():
    """The closer the first action is to 0.5 in every dimension, the better; what follows does not matter."""
    agent = make_agent(num_samples=256, num_elites=16, iterations=6, temperature=5.0)

    def estimate_value(z, actions, noise, tasks, known):
        return -10 * (actions[:, 0] - 0.5).abs().sum(-1)

    agent.planner.estimate_value = estimate_value
    action = agent.act(torch.randn(3, 1, 5), firsts(True), False)
    torch.testing.assert_close(action, torch.full((3, 1, 2), 0.5), atol=0.2, rtol=0)
