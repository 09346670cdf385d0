"""Several tasks in one model: embeddings, padded observations, masked actions and a discount for each task."""

from dataclasses import replace

import pytest
import torch
from plain_tdmpc2 import CPU, MULTITASK_SPEC, PlainRun, make_agent, make_batch, record
from tdmpc2_parameters import assert_same, batched, plain

from agents.multitask import OneTask, multitask_spec, pad
from agents.tdmpc2.agent import TDMPC2
from agents.tdmpc2.hyperparameters import MT30_ARCHITECTURES, Hyperparameters
from agents.tdmpc2.world_model import WorldModel
from bench.tasks import task_set

CLOSE = {"rtol": 1e-7, "atol": 1e-9}
FEW = {"num_samples": 8, "num_elites": 3, "num_pi_trajs": 2, "iterations": 2}
"""Candidates for the plain version, which takes them one by one."""
META = torch.device("meta")


def make(seeds=(1, 2), scale=3.0, **overrides):
    """An agent of four tasks, some of whose embeddings are longer than 1 until they are looked up."""
    agent = make_agent(seeds=seeds, spec=MULTITASK_SPEC, **overrides)
    agent.model.tasks.embedding.data *= scale
    return agent


def batch_of(seeds, **changes):
    return make_batch(seeds, spec=MULTITASK_SPEC, **changes)


@pytest.mark.usefixtures("double")
class TestAgainstThePlainVersion:
    @pytest.mark.parametrize("overrides", [{}, {"dropout": 0.0, "horizon": 2, "lr": 0.05, "episodic": True}])
    def test_losses_gradients_and_parameters(self, overrides):
        agent = make(**overrides)
        assert (agent.model.tasks.embedding.norm(dim=2) > 1).any()
        references = [PlainRun(agent, run) for run in range(2)]
        for repeat in range(2):
            batch = batch_of((10 + repeat, 20), horizon=agent.hp.horizon)
            draws = record(agent, "learn")
            metrics = agent.update(batch)
            for run, reference in enumerate(references):
                expected = reference.update(batch, run, draws.of_run(run))
                assert {name: float(v[run]) for name, v in metrics.items()} == pytest.approx(expected, rel=1e-8)
                assert_same(batched(agent, run), plain(reference), **CLOSE)
                torch.testing.assert_close(agent.model.tasks.embedding[run], reference.embedding.weight, **CLOSE)

    @pytest.mark.parametrize("explore", [True, False])
    def test_plan_candidate_by_candidate(self, explore):
        agent = make(num_envs=3, **FEW)
        stream = "explore" if explore else "evaluate"
        task = torch.tensor([[0, 1, 2], [3, 1, 1]])
        obs = torch.randn(2, 2, 3, 5, generator=torch.Generator().manual_seed(0))
        references = [PlainRun(agent, run) for run in range(2)]
        starts = torch.zeros(2, 3, 3, 3)  # (R, N, H, A)
        for call in range(2):
            draws = record(agent, stream)
            action = agent.act(obs[call], torch.full((2, 3), call == 0), explore, task)
            for run, reference in enumerate(references):
                for env in range(3):
                    expected, mean = reference.plan(
                        obs[call, run, env], starts[run, env], env, draws.of_run(run), 2, explore, int(task[run, env])
                    )
                    torch.testing.assert_close(action[run, env], expected, **CLOSE)
                    starts[run, env] = torch.cat([mean[1:], torch.zeros(1, 3)])

    def test_two_runs_equal_two_single_runs(self):
        fleet, singles = make(), [make(seeds=(seed,)) for seed in (1, 2)]
        task, obs = torch.tensor([[2], [3]]), torch.randn(2, 1, 5)
        for repeat in range(2):
            metrics = fleet.update(batch_of((7 + repeat, 8)))
            action = fleet.act(obs, torch.full((2, 1), repeat == 0), True, task)
            for run, single in enumerate(singles):
                alone = single.update(batch_of(((7 + repeat, 8)[run],)))
                for name, value in metrics.items():
                    torch.testing.assert_close(value[run], alone[name][0], **CLOSE)
                own = single.act(obs[run : run + 1], torch.full((1, 1), repeat == 0), True, task[run : run + 1])
                torch.testing.assert_close(action[run], own[0], **CLOSE)


def test_embeddings_are_cut_to_norm_one_where_they_are_looked_up():
    table = make().model.tasks
    before = table.embedding.detach().clone()
    before[0, 1] *= 0.1 / before[0, 1].norm()  # a short one stays
    table.embedding.data.copy_(before)
    context = table(torch.tensor([[0, 1, 1], [2, 2, 2]]))
    after = table.embedding.detach()
    for run, number in ((0, 0), (1, 2)):
        assert float(before[run, number].norm()) > 1
        torch.testing.assert_close(after[run, number], before[run, number] / before[run, number].norm())
    for run, number in ((0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 3)):
        assert torch.equal(after[run, number], before[run, number])
    assert torch.equal(context.embedding[0], after[0, [0, 1, 1]])
    # The same rule as torch's own table.
    torchs = torch.nn.Embedding(4, 6, max_norm=1)
    torchs.weight.data.copy_(before[1])
    torch.testing.assert_close(torchs(torch.tensor([2, 2, 2])), context.embedding[1])


def test_discount_and_action_size_are_those_of_each_task():
    context = make().model.context(torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]]))
    torch.testing.assert_close(context.discount[0], torch.tensor([0.99, 0.95, 0.98, 0.95]))
    assert context.action_size.tolist() == [[1, 3, 2, 2], [2, 2, 3, 1]]
    assert context.action_mask[0].tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 0], [1, 1, 0]]


@pytest.mark.parametrize("mpc", [True, False])
@pytest.mark.parametrize("explore", [True, False])
def test_dimensions_that_a_task_has_not_are_zero(mpc, explore):
    agent = make(num_envs=4, mpc=mpc)
    task = torch.tensor([[0, 1, 2, 3]]).expand(2, -1)
    action = agent.act(torch.randn(2, 4, 5), torch.ones(2, 4, dtype=torch.bool), explore, task)
    used = agent.model.tasks.action_mask[task] > 0
    assert (action[~used] == 0).all()
    assert (action[used] != 0).all()
    assert (
        agent.plan_means["explore" if explore else "evaluate"].transpose(1, 2)[~used[:, :, None].expand(-1, -1, 3, -1)]
        == 0
    ).all()


def test_the_policy_step_leaves_the_embeddings_alone():
    agent = make()
    zs = agent.model.encode(
        batch_of((1, 2)).obs, agent.noise["learn"], agent.model.context(batch_of((1, 2)).task).unsqueeze(1)
    ).detach()
    before = agent.model.tasks.embedding.detach().clone()
    agent.update_policy(zs, batch_of((1, 2)).task)
    assert torch.equal(before, agent.model.tasks.embedding)
    assert agent.model.tasks.embedding.grad is None
    agent.update(batch_of((1, 2)))
    assert not torch.equal(before, agent.model.tasks.embedding)


def test_every_network_is_conditioned_on_the_task():
    agent = make()
    model = agent.model
    one, other = (model.context(torch.full((2, 4), number)) for number in (1, 3))
    obs, z, action = torch.randn(2, 4, 5), torch.randn(2, 4, 8), torch.rand(2, 4, 3)
    heads = torch.tensor([[0, 1], [2, 3]])
    for network in (
        lambda tasks: model.encode(obs, agent.noise["learn"], tasks),
        lambda tasks: model.next(z, action, tasks),
        lambda tasks: model.reward(z, action, tasks),
        lambda tasks: model.policy(z, tasks)[0],
        lambda tasks: model.q(z, action, tasks),
        lambda tasks: model.q_heads(z, action, heads, tasks, target=True),
    ):
        assert not torch.allclose(network(one), network(other))


def test_a_state_goes_into_another_agent_and_a_missing_task_is_an_error():
    agent, resumed = make(), make(scale=0.1)
    agent.update(batch_of((1, 2)))
    resumed.load_state_dict([agent.state_dict(run) for run in range(2)])
    ours, theirs = agent.update(batch_of((3, 4))), resumed.update(batch_of((3, 4)))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(agent.model.tasks.embedding, resumed.model.tasks.embedding)
    with pytest.raises(ValueError, match="task of each sample"):
        agent.update(replace(batch_of((1, 2)), task=None))


def test_a_view_of_one_task_pads_observations_and_cuts_actions():
    agent, alone = make(num_envs=2), make(num_envs=2)
    first = torch.ones(2, 2, dtype=torch.bool)
    view = OneTask(agent, MULTITASK_SPEC, 2)
    obs = torch.randn(2, 2, 4)
    action = view.act(obs, first, False)
    assert action.shape == (2, 2, 2)
    padded = torch.cat([obs, torch.zeros(2, 2, 1)], -1)
    assert torch.equal(pad(obs, 5), padded)
    assert torch.equal(action, alone.act(padded, first, False, torch.full((2, 2), 2))[..., :2])


def test_the_specification_of_a_task_set():
    spec = multitask_spec(task_set("mt80"))
    assert (spec.obs_shape, spec.action_size, len(spec.tasks)) == ((39,), 6, 80)
    assert [task.name for task in spec.tasks[29:31]] == ["pendulum-spin", "mw-assembly"]
    agent = TDMPC2(multitask_spec(task_set("mt30")[:3]), Hyperparameters(model_size=1), [1], CPU)
    assert agent.model.tasks.discount.tolist() == pytest.approx([0.99] * 3)
    norm = agent.model.tasks.embedding.detach().abs().max()
    assert 0.015 < float(norm) <= 0.02


@pytest.mark.parametrize(
    ("tasks", "model_size", "parameters"),
    [
        ("mt30", 1, 1_426_427),
        ("mt30", 5, 5_241_066),
        ("mt30", 19, 16_031_210),
        ("mt30", 48, 48_242_410),
        ("mt30", 317, 317_316_889),
        ("mt80", 1, 1_435_067),
        ("mt80", 5, 5_389_930),
        ("mt80", 19, 18_970_218),
        ("mt80", 48, 48_791_146),
        ("mt80", 317, 317_383_129),
    ],
)
def test_parameter_counts_are_the_published_ones(tasks, model_size, parameters):
    own = MT30_ARCHITECTURES.get(model_size, {}) if tasks == "mt30" else {}
    hp = Hyperparameters(model_size=model_size, **own)
    assert WorldModel(multitask_spec(task_set(tasks)), hp, [1], META).num_parameters == parameters
