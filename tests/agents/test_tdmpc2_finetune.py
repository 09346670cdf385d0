"""Finetuning: what a new agent takes over from a trained model, against a plain evaluation of the file's tensors."""

from dataclasses import replace

import pytest
import torch
from authors_files import Plain, build

from agents.nn import module_state
from agents.protocol import AgentSpec, TaskSpec
from agents.tdmpc2.agent import TDMPC2
from agents.tdmpc2.checkpoints import AuthorsFile
from agents.tdmpc2.hyperparameters import Hyperparameters
from bench.errors import UserError

CPU = torch.device("cpu")
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
TINY = (16, 24, 16, 2, 3, 12)
OBS, ACTION, TASKS = 9, 4, 5
SMALL = {"batch_size": 8, "num_samples": 16, "num_elites": 4, "num_pi_trajs": 2, "iterations": 2}


def trained(layout="2025", tasks=TASKS, **settings):
    return build(layout=layout, tasks=tasks, dims=TINY, **({"obs": OBS, "action": ACTION} | settings))


def new_agent(entries, obs=OBS, action=ACTION, seeds=(1, 2), embedded=True, **overrides):
    one = TaskSpec("new", obs, action, 500)
    spec = AgentSpec((obs,), "state", action, 500, 10_000, tasks=(one,) if embedded else ())
    hp = Hyperparameters(**AuthorsFile.of(entries, "file").architecture, **SMALL, **overrides)
    return TDMPC2(spec, hp, list(seeds), CPU)


def started(tmp_path, entries, row=2, **settings):
    torch.save(entries, tmp_path / "model.pt")
    agent = new_agent(entries, **settings)
    agent.start_from(tmp_path / "model.pt", row)
    return agent


def assert_plays(agent, plain, row, obs_size=OBS, action_size=ACTION):
    """Every network of every run, on the part of observation and action that agent and file have in common; further
    entries of the file's are zero, as multi-task training pads them, and further entries of the agent's are not."""
    g = torch.Generator().manual_seed(3)
    own_obs, own_action = agent.spec.obs_shape[0], agent.action_size
    obs, action = torch.randn(6, own_obs, generator=g), torch.rand(6, own_action, generator=g)
    z = torch.rand(6, agent.hp.latent_dim, generator=g)

    def padded(x, size):
        return torch.nn.functional.pad(x[:, :size], (0, max(0, size - x.shape[1])))

    extra = [] if row is None else [row.expand(6, -1)]
    za = torch.cat([z, *extra, padded(action, action_size)], -1)
    mean, raw_std = plain.stack("_pi", torch.cat([z, *extra], -1)).chunk(2, -1)
    expected = {
        "z": plain.stack("_encoder.state", torch.cat([padded(obs, obs_size), *extra], -1), simplices=True),
        "next": plain.stack("_dynamics", za, simplices=True),
        "reward": plain.stack("_reward", za),
        "mean": mean[:, :own_action],
        "log_std": (-10 + 6 * (raw_std.tanh() + 1))[:, :own_action],
    }
    common = min(own_action, action_size)
    model, context, runs = agent.model, agent.model.context(None), agent.runs
    obs, action, z = (x.expand(runs, -1, -1) for x in (obs, action, z))
    heads = torch.arange(agent.hp.num_q).expand(runs, -1)
    found = {
        "z": model.encode(obs, agent.noise["learn"], context),
        "next": model.next(z, action, context),
        "reward": model.reward(z, action, context),
        "mean": model.policy(z, context)[0][..., :common],
        "log_std": model.policy(z, context)[1][..., :common],
    }
    for target, prefix in ((False, "_Qs.params"), (True, "_target_Qs_params")):
        q = model.q_heads(z, action, heads, context, target=target)
        for head in range(agent.hp.num_q):
            expected[f"{prefix}{head}"] = plain.stack(prefix, za, head)
            found[f"{prefix}{head}"] = q[:, head]
    for name, value in found.items():
        for run in range(runs):
            torch.testing.assert_close(
                value[run], expected[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("layout", ["2023", "2024", "2025"])
def test_a_new_agent_of_the_same_sizes_computes_what_the_file_says(layout, tmp_path):
    entries = trained(layout)
    plain = Plain(entries)
    assert_plays(started(tmp_path, entries), plain, plain.embed(torch.tensor([2])))


@pytest.mark.parametrize(("obs", "action"), [(6, 2), (12, 4), (9, 6), (3, 6), (12, 1)])
def test_other_sizes_cut_the_padding_or_begin_by_ignoring_what_is_new(obs, action, tmp_path):
    entries = trained()
    plain = Plain(entries)
    agent = started(tmp_path, entries, obs=obs, action=action)
    assert_plays(agent, plain, plain.embed(torch.tensor([2])))
    fresh = new_agent(entries, obs=obs, action=action)
    own, new = agent.model.policy_head.last.weight, fresh.model.policy_head.last.weight
    for half in (0, action):  # of the mean, of the log standard deviation
        beyond = slice(half + min(action, ACTION), half + action)
        assert torch.equal(own[..., beyond], new[..., beyond])
        if beyond.start < beyond.stop:
            assert not torch.equal(own[0, :, beyond], own[1, :, beyond]), "each run by its own seed"


@pytest.mark.parametrize(("obs", "action"), [(OBS, ACTION), (6, 6)])
def test_a_model_of_one_task_goes_to_another_one(obs, action, tmp_path):
    entries = trained(tasks=0)
    agent = started(tmp_path, entries, row=None, obs=obs, action=action, embedded=False)
    assert agent.model.tasks is None
    assert_plays(agent, Plain(entries), None)


def test_the_embedding_starts_as_a_row_or_as_the_mean_and_is_cut_to_norm_one(tmp_path):
    entries = trained()
    table = entries["model"]["_task_emb.weight"]
    table[1] *= 3 / table[1].norm()
    for row, expected in ((1, table[1] / 3), (4, table[4]), ("mean", table.mean(0))):
        embedding = started(tmp_path, entries, row).model.context(None).embedding
        assert embedding.shape == (2, 1, 12)
        torch.testing.assert_close(embedding[1, 0], expected, **CLOSE)


def test_a_checkpoint_of_a_run_says_the_same_as_the_file(tmp_path):
    """One run of a fleet, saved as runs are."""
    entries = trained()
    fleet = started(tmp_path, entries)
    state = {"format_version": 1, "agent": {"model": module_state(fleet.model, 1, 2)}}
    torch.save(state, tmp_path / "0000000100.pt")
    agent = new_agent(entries, seeds=(5,))
    agent.start_from(tmp_path / "0000000100.pt", 0)  # it has one row
    plain = Plain(entries)
    assert_plays(agent, plain, plain.embed(torch.tensor([2])))


def test_what_is_no_parameter_starts_anew_and_learning_reaches_every_part(tmp_path):
    entries = trained()
    agent, fresh = started(tmp_path, entries, obs=12, action=6), new_agent(entries, obs=12, action=6)
    assert not agent.optimizer.state
    assert torch.equal(agent.scale.value, torch.ones(2))
    assert all(torch.equal(agent.noise[name].normal(3), fresh.noise[name].normal(3)) for name in agent.noise)
    before = {name: tensor.clone() for name, tensor in agent.model.state_dict().items()}
    g = torch.Generator().manual_seed(0)
    batch = dict(
        obs=torch.randn(2, 4, 8, 12, generator=g),
        action=torch.rand(2, 3, 8, 6, generator=g) * 2 - 1,
        reward=torch.rand(2, 3, 8, generator=g),
        terminated=torch.zeros(2, 3, 8),
    )
    from agents.protocol import Batch

    agent.update(Batch(**batch))
    same = [name for name, tensor in agent.model.state_dict().items() if torch.equal(tensor, before[name])]
    assert same == []
    columns = agent.model.encoder.hidden[0].linear.weight[:, OBS:12]
    assert (columns != 0).all(), "inputs that the model did not have are learned"


def test_one_embedding_needs_no_task_number_and_several_do(tmp_path):
    """The context of one task holds for every sample: as if each had been told its number."""
    entries = trained()
    agent = started(tmp_path, entries)
    zeros = torch.zeros(2, 7, dtype=torch.int64)
    z, action = torch.rand(2, 7, 16), torch.rand(2, 7, ACTION)
    left, right = (agent.model.reward(z, action, agent.model.context(told)) for told in (None, zeros))
    assert torch.equal(left, right)
    obs, first = torch.randn(2, 3, OBS), torch.ones(2, 3, dtype=torch.bool)
    twin = started(tmp_path, entries)
    for mpc in (True, False):
        agent.hp = twin.hp = agent.hp.model_copy(update={"mpc": mpc})
        assert torch.equal(agent.act(obs, first, True), twin.act(obs, first, True, zeros[:, :3]))


def test_a_termination_head_is_taken_over_or_made(tmp_path):
    entries = trained(episodic=True)
    agent = started(tmp_path, entries, episodic=True)
    z = torch.rand(2, 4, 16)
    row = Plain(entries).embed(torch.tensor([2])).expand(4, -1)
    expected = Plain(entries).stack("_termination", torch.cat([z[0], row], -1))[:, 0]
    torch.testing.assert_close(agent.model.termination(z, agent.model.context(None))[0], expected, **CLOSE)
    assert started(tmp_path, entries).model.termination_head is None
    made = started(tmp_path, trained(), episodic=True)
    assert made.model.termination_head is not None


def test_images(tmp_path):
    entries = build(5, "2025", rgb=True)
    torch.save(entries, tmp_path / "model.pt")
    hp = Hyperparameters(**AuthorsFile.of(entries, "file").architecture, **SMALL)
    spec = AgentSpec((9, 64, 64), "rgb", 2, 500, 10_000, frame_stack=3)
    agent = TDMPC2(spec, hp, [1], CPU)
    agent.start_from(tmp_path / "model.pt", None)
    assert torch.equal(agent.model.encoder.convs.layers[0].weight[0], entries["model"]["_encoder.rgb.2.weight"])
    weight = entries["model"]["_dynamics.0.weight"]
    assert torch.equal(agent.model.dynamics.hidden[0].linear.weight[0].T, weight[:, : 512 + 2])


def test_another_architecture_is_one_line(tmp_path):
    entries = trained()
    torch.save(entries, tmp_path / "model.pt")
    agent = new_agent(entries)
    other = TDMPC2(agent.spec, agent.hp.model_copy(update={"mlp_dim": 32}), [1], CPU)
    with pytest.raises(UserError, match=r"the checkpoint's dynamics.* has shape .* instead of"):
        other.start_from(tmp_path / "model.pt", 0)
    plain = TDMPC2(replace(agent.spec, tasks=()), agent.hp, [1], CPU)
    with pytest.raises(UserError, match="its architecture is another one"):
        plain.start_from(tmp_path / "model.pt", None)
    torch.save({"format_version": 1, "agent": {"actor": {}}}, tmp_path / "0000000100.pt")
    with pytest.raises(UserError, match="no checkpoint of tdmpc2"):
        agent.start_from(tmp_path / "0000000100.pt", 0)
