"""Planning of TD-MPC against a plain version, its memory and its schedules."""

from __future__ import annotations

import math

import pytest
import torch
from plain_tdmpc import CPU, PIXELS, SMALL, SPEC, PlainRun, make_agent, make_batch, record

from agents.protocol import AgentSpec
from baselines.tdmpc.agent import TDMPC
from baselines.tdmpc.hyperparameters import Hyperparameters

CLOSE = {"rtol": 1e-7, "atol": 1e-9}


@pytest.fixture
def double():
    """Work in float64, so that two ways to compute the same thing agree closely."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def firsts(value, runs=3, envs=1):
    return torch.full((runs, envs), value, dtype=torch.bool)


@pytest.mark.usefixtures("double")
class TestAgainstThePlainVersion:
    @pytest.mark.parametrize(
        ("explore", "updates", "overrides"),
        [
            (True, 60, {}),
            (False, 0, {"momentum": 0.6, "temperature": 2.0}),
            (True, 31, {"mixture_coef": 0.0, "discount": 0.8}),
            (False, 60, {"min_std": 0.45}),
        ],
    )
    def test_plan_candidate_by_candidate(self, explore, updates, overrides):
        agent = make_agent(seeds=(1, 2), num_envs=2, **overrides)
        agent.updates = updates
        stream, horizon = ("explore" if explore else "evaluate"), agent.hp.plan_horizon(agent.episode_start)
        assert horizon == {0: 1, 31: 2, 60: 3}[updates]
        obs = torch.randn(3, 2, 2, 5, generator=torch.Generator().manual_seed(0))
        starts = torch.zeros(2, 2, horizon, 2)  # (R, N, h, A)
        for call, first in enumerate([firsts(True, 2, 2), torch.tensor([[False, True], [False, False]])]):
            draws = record(agent, stream)
            action = agent.act(obs[call], first, explore)
            for run in range(2):
                reference = PlainRun(agent, run)
                for env in range(2):
                    start = torch.zeros(horizon, 2) if first[run, env] else starts[run, env]
                    expected, mean = reference.plan(
                        obs[call, run, env], start, agent.std_floor, env, draws.of_run(run), explore
                    )
                    torch.testing.assert_close(action[run, env], expected, **CLOSE)
                    torch.testing.assert_close(agent.plan_means[stream][run, :horizon, env], mean, **CLOSE)
                    starts[run, env] = torch.cat([mean[1:], torch.zeros(1, 2)])

    def test_three_runs_act_as_three_single_runs(self):
        fleet, singles = make_agent(num_envs=2), [make_agent(seeds=(seed,), num_envs=2) for seed in (1, 2, 3)]
        for call in range(3):
            obs = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(call))
            for explore in (True, False):
                action = fleet.act(obs, firsts(call == 0, 3, 2), explore)
                assert action.shape == (3, 2, 2)
                for run, single in enumerate(singles):
                    alone = single.act(obs[run : run + 1], firsts(call == 0, 1, 2), explore)
                    torch.testing.assert_close(action[run], alone[0], **CLOSE)


def test_images_are_planned_from():
    agent = make_agent(seeds=(1, 2), spec=PIXELS, num_envs=2)
    obs = make_batch((1, 2), spec=PIXELS).obs[:, 0, :2]
    draws = record(agent, "evaluate")
    action = agent.act(obs, firsts(True, 2, 2), False)
    for run in range(2):
        start = torch.zeros(1, 2)
        expected, _ = PlainRun(agent, run).plan(obs[run, 1], start, agent.std_floor, 1, draws.of_run(run), False)
        torch.testing.assert_close(action[run, 1], expected, rtol=1e-4, atol=1e-4)


def test_the_authors_candidates():
    hp = Hyperparameters()
    assert hp.num_samples + hp.num_pi_trajs == 537


def test_evaluation_leaves_training_alone_and_may_have_other_environments():
    quiet, disturbed = make_agent(), make_agent()
    for call in range(3):
        obs = torch.randn(3, 1, 5, generator=torch.Generator().manual_seed(call))
        expected = quiet.act(obs, firsts(call == 0), True)
        for envs in (4, 10):
            assert disturbed.act(torch.randn(3, envs, 5), firsts(call == 0, 3, envs), False).shape == (3, envs, 2)
        assert torch.equal(disturbed.act(obs, firsts(call == 0), True), expected)


def test_actions_are_bounded_and_evaluation_draws_its_elite():
    agent = make_agent()
    obs = torch.randn(3, 1, 5)
    actions = torch.stack([agent.act(obs, firsts(True), explore) for explore in (True, False) for _ in range(20)])
    assert float(actions.abs().max()) <= 1
    # In some dimension: one where every elite is at its bound does not vary.
    assert float(actions[20:].std(0).amax(-1).min()) > 0


def test_a_candidate_without_a_value_counts_as_zero_and_a_run_without_any_has_diverged():
    agent = make_agent(num_samples=200, iterations=6, momentum=0.0, temperature=5.0)

    def estimate_value(z, actions, noise):
        value = -10 * (actions[:, 0] - 0.5).abs().sum(-1)
        value[0, :, ::2] = math.nan
        value[1] = math.nan
        return value

    agent.planner.estimate_value = estimate_value
    action = agent.act(torch.randn(3, 1, 5), firsts(True), False)
    assert action[0].isfinite().all()
    assert action[1].isnan().all()
    torch.testing.assert_close(action[2], torch.full((1, 2), 0.5), atol=0.2, rtol=0)


# Schedules


@pytest.mark.parametrize(
    ("episode_start", "horizon"),
    [
        (0, 1),
        (5000, 1),
        (6249, 1),
        (6250, 2),
        (12_499, 2),
        (12_500, 3),
        (18_750, 4),
        (24_999, 4),
        (25_000, 5),
        (1e6, 5),
    ],
)
def test_planning_horizon_of_an_episode(episode_start, horizon):
    assert Hyperparameters().plan_horizon(int(episode_start)) == horizon


def test_floor_of_the_plan_by_agent_steps():
    floors = [Hyperparameters().std_floor(steps) for steps in (0, 12_500, 25_000, 1_000_000)]
    assert floors == pytest.approx([0.5, 0.275, 0.05, 0.05])


@pytest.mark.parametrize(("episode", "num_envs"), [(250, 1), (500, 1), (100, 1), (125, 1), (100, 5)])
def test_updates_and_schedules_are_those_of_the_authors_loop(episode, num_envs):
    """Theirs goes by whole episodes: the counter in an update begins with the episode and counts on in its block."""
    block = episode * num_envs
    spec = AgentSpec((3,), "state", 1, episode, 50_000, num_envs)
    small = {key: SMALL[key] for key in ("enc_dim", "mlp_dim", "latent_dim")}
    agent = TDMPC(spec, Hyperparameters(**small), [1], CPU)
    assert agent.seed_agent_steps == 5000
    floor, total, moves = 0.5, 0, []
    for start in range(0, 30_000, block):
        if start >= 5000:  # the agent acts from here on
            assert agent.std_floor == pytest.approx(floor)
            assert agent.hp.plan_horizon(agent.episode_start) == int(min(5, 1 + 4 * start / 25_000))
        due = [agent.updates_due(start + i, start + i + num_envs) for i in range(0, block, num_envs)]
        assert not any(due[:-1])
        updates = (5000 if start == 5000 else block) if start >= 5000 else 0
        assert due[-1] == updates
        for i in range(updates):
            floor = max(0.05, 0.5 - 0.45 * (start + i) / 25_000)
            moves.append((start + i) % 2 == 0)
            assert agent.schedule_position(total + i) == start + i
        total += updates
        agent.updates = total
        if start == 5000:
            assert agent.std_floor == pytest.approx(0.320, abs=5e-4)
        elif start == 5000 + block:
            assert agent.std_floor == pytest.approx(0.5 - 0.45 * (5000 + 2 * block - 1) / 25_000)
    assert total == 30_000 - block


def test_a_seed_phase_is_whole_episodes():
    assert TDMPC(SPEC, Hyperparameters(**(SMALL | {"seed_agent_steps": 21})), [1], CPU).seed_agent_steps == 30


def test_the_target_moves_with_every_second_update():
    agent = make_agent(seeds=(1,), target_every=2)
    for update in range(4):
        before = [p.clone() for p in agent.model.target_q_heads.parameters()]
        agent.update(make_batch((update,)))
        moved = any(not torch.equal(a, b) for a, b in zip(before, agent.model.target_q_heads.parameters(), strict=True))
        assert moved == (update % 2 == 0)
