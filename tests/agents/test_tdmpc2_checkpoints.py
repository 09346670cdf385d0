"""The authors' checkpoint files, in every layout and size: understood, and every tensor where it belongs."""

import os
import re
from dataclasses import replace

import pytest
import torch
from authors_files import Plain, build, by_name

from agents.augmentation import random_shift
from agents.noise import Noise
from agents.tdmpc2.authors_layout import export
from agents.tdmpc2.checkpoints import AuthorsFile, load_tensors
from agents.tdmpc2.hyperparameters import ARCHITECTURES
from bench.errors import UserError
from bench.tasks import expand, task_set

CPU = torch.device("cpu")
LAYOUTS = ("2023", "2024", "2025")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
WALKER = expand(["walker-walk"])
TINY = (16, 24, 16, 2, 3, 12)  # no size of the authors


def written(tmp_path, entries):
    path = tmp_path / "model.pt"
    torch.save(entries, path)
    return path


def agent_of(file, tasks=WALKER, **overrides):
    return file.agent(tasks, overrides, 1, CPU)[0]


def assert_computes_the_same(agent, entries, tasks=0):
    """Every network of the agent against a plain evaluation of the file's tensors."""
    plain, model, g = Plain(entries), agent.model, torch.Generator().manual_seed(1)
    latent, obs_size = agent.hp.latent_dim, agent.spec.obs_shape[0]
    obs, z = torch.randn(4, obs_size, generator=g), torch.rand(4, latent, generator=g)
    action = torch.rand(4, agent.action_size, generator=g)
    number = torch.tensor([0, 1, tasks - 1, 1]) if tasks else None
    context = model.context(None if number is None else number[None])
    extra = [plain.embed(number)] if tasks else []
    za = torch.cat([z, *extra, action], -1)
    raw = plain.stack("_pi", torch.cat([z, *extra], -1))
    mean, raw_std = raw.chunk(2, -1)
    mask = context.action_mask[0] if tasks else 1.0
    pairs = [
        (model.next(z[None], action[None], context)[0], plain.stack("_dynamics", za, simplices=True)),
        (model.reward(z[None], action[None], context)[0], plain.stack("_reward", za)),
        (model.policy(z[None], context)[0][0], mean * mask),
        (model.policy(z[None], context)[1][0], (-10 + 6 * (raw_std.tanh() + 1)) * mask),
    ]
    if agent.spec.obs_kind == "state":
        expected = plain.stack("_encoder.state", torch.cat([obs, *extra], -1), simplices=True)
        pairs.append((model.encode(obs[None], agent.noise["learn"], context)[0], expected))
    if agent.hp.episodic:
        expected = plain.stack("_termination", torch.cat([z, *extra], -1))[:, 0]
        pairs.append((model.termination(z[None], context)[0], expected))
    heads = torch.arange(agent.hp.num_q)[None]
    for target, prefix in ((False, "_Qs.params"), (True, "_target_Qs_params")):
        q = model.q_heads(z[None], action[None], heads, context, target=target)[0]
        pairs += [(q[head], plain.stack(prefix, za, head)) for head in range(agent.hp.num_q)]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_the_files_have_as_many_entries_as_the_authors():
    assert [len(build(layout=layout, device="meta")["model"]) for layout in LAYOUTS] == [60, 102, 78]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("wrap", [True, False])
def test_a_model_of_one_task(layout, wrap, tmp_path):
    entries = build(1, layout, wrap=wrap)
    path = written(tmp_path, entries)
    file = AuthorsFile.read(path)
    assert (file.layout, file.num_tasks, file.obs_size, file.action_size) == (layout, 0, 24, 6)
    agent = agent_of(file, num_samples=32, num_elites=4, iterations=2)
    assert agent.hp.model_size == 1
    assert agent.model.num_parameters == 1_214_651
    assert agent.gamma == pytest.approx(0.99)
    assert_computes_the_same(agent, entries)
    obs, first = torch.randn(1, 2, 24), torch.ones(1, 2, dtype=torch.bool)
    assert agent.act(obs, first, False).shape == (1, 2, 6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("tasks", "obs", "name"), [(30, 24, "mt30"), (80, 39, "mt80")])
def test_a_model_of_many_tasks(layout, tasks, obs, name, tmp_path):
    entries = build(1, layout, tasks=tasks, obs=obs)
    if layout == "2025":
        sizes = torch.tensor([task.action_size for task in task_set(name)])
        entries["model"]["_action_masks"] = (torch.arange(6) < sizes[:, None]).float()
    file = AuthorsFile.read(written(tmp_path, entries))
    assert (file.num_tasks, file.obs_size, file.action_size) == (tasks, obs, 6)
    agent = agent_of(file, task_set(name))
    assert agent.model.num_parameters == {30: 1_426_427, 80: 1_435_067}[tasks]
    assert_computes_the_same(agent, entries, tasks)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_terminations_count_only_where_tasks_have_them(layout):
    """A head that came with a task that never ends was made, and not trained."""
    entries = build(1, layout, episodic=True)
    file = AuthorsFile.of(entries, "file")
    assert file.has_termination
    assert_computes_the_same(agent_of(file), entries)
    ending = agent_of(file, [replace(WALKER[0], terminates=True)])
    assert ending.hp.episodic
    assert_computes_the_same(ending, entries)


@pytest.mark.parametrize("both", [False, True])
def test_a_model_of_images(both, tmp_path):
    entries = build(5, "2025", rgb=True)
    if both:
        entries["model"] |= {n: x for n, x in build(5, "2025")["model"].items() if n.startswith("_encoder.state")}
    file = AuthorsFile.read(written(tmp_path, entries))
    assert file.obs_kind == "rgb"
    agent = agent_of(file)
    assert agent.model.num_parameters == 4_879_370
    assert_computes_the_same(agent, entries)
    images = torch.randint(0, 256, (1, 2, 9, 64, 64), dtype=torch.uint8)
    shifted = random_shift(images, 3, Noise([1], "evaluate", CPU))
    z = agent.model.encode(images, agent.noise["evaluate"])
    torch.testing.assert_close(z[0], Plain(entries).images(shifted[0]), **CLOSE)


@pytest.mark.parametrize("size", ARCHITECTURES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tasks", [0, 30, 80])
def test_sizes_are_told_by_the_shapes(size, layout, tasks):
    file = AuthorsFile.of(build(size, layout, tasks=tasks, obs=39 if tasks == 80 else 24, device="meta"), "file")
    told = file.architecture
    assert told["model_size"] == size
    latent = 512 if (size, tasks) == (19, 30) else ARCHITECTURES[size]["latent_dim"]
    assert told.items() >= (ARCHITECTURES[size] | {"latent_dim": latent}).items()


def test_a_size_of_ones_own():
    entries = build(layout="2023", dims=TINY)
    agent = agent_of(AuthorsFile.of(entries, "file"))
    assert (agent.hp.enc_dim, agent.hp.mlp_dim, agent.hp.latent_dim, agent.hp.num_q) == (16, 24, 16, 3)
    assert_computes_the_same(agent, entries)


@pytest.mark.whole
@pytest.mark.parametrize(("size", "layout", "tasks"), [(5, "2023", 80), (5, "2025", 0), (19, "2024", 30)])
def test_larger_models_compute_what_their_files_say(size, layout, tasks, tmp_path):
    entries = build(size, layout, tasks=tasks, obs=39 if tasks == 80 else 24)
    file = AuthorsFile.read(written(tmp_path, entries))
    chosen = task_set(f"mt{tasks}") if tasks else WALKER
    assert_computes_the_same(agent_of(file, chosen), entries, tasks)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "layout", "tasks"), [(19, "2025", 80), (48, "2023", 80), (48, "2025", 30), (317, "2023", 80)]
)
def test_the_largest_models_compute_what_their_files_say(size, layout, tasks, tmp_path):
    entries = build(size, layout, tasks=tasks, obs=39 if tasks == 80 else 24)
    file = AuthorsFile.read(written(tmp_path, entries))
    assert_computes_the_same(agent_of(file, task_set(f"mt{tasks}")), entries, tasks)


@pytest.mark.parametrize(
    ("tasks", "episodic", "rgb"), [(0, False, False), (3, False, False), (0, True, False), (0, False, True)]
)
def test_what_is_exported_is_the_current_layout(tasks, episodic, rgb):
    entries = build(5 if rgb else 1, "2025", tasks=tasks, episodic=episodic, rgb=rgb, dims=None if rgb else TINY)
    chosen = expand(["cup-catch", "walker-walk", "hopper-hop"]) if tasks else [replace(WALKER[0], terminates=episodic)]
    if tasks:
        mask = [[1.0, 1, 0, 0, 0, 0], [1.0] * 6, [1.0, 1, 1, 1, 0, 0]]
        entries["model"]["_action_masks"] = torch.tensor(mask)
    agent = agent_of(AuthorsFile.of(entries, "file"), chosen)
    written = export(agent.model, 0)["model"]
    assert written.keys() == entries["model"].keys()
    for name, value in entries["model"].items():
        if name.endswith("__device"):
            assert written[name] == torch.device("cpu")
        elif isinstance(value, torch.Tensor):
            assert torch.equal(written[name], value), name
            assert written[name].dtype == value.dtype, name
        else:
            assert written[name] == value


def test_one_run_of_a_fleet_is_exported(tmp_path):
    from plain_tdmpc2 import make_agent

    fleet = make_agent(dropout=0.0, simnorm_dim=8, num_bins=101)
    torch.save(export(fleet.model, 1), tmp_path / "run.pt")
    loaded = by_name(load_tensors(tmp_path / "run.pt"))
    assert torch.equal(loaded["_pi.0.weight"], fleet.model.policy_head.hidden[0].linear.weight[1].T)
    assert torch.equal(loaded["_Qs.params.2.bias"], fleet.model.online_q.last.bias[4:8, 0])
    pendulum = replace(expand(["pendulum-swingup"])[0], obs_size=5, action_size=2)
    file = AuthorsFile.read(tmp_path / "run.pt")
    assert_computes_the_same(agent_of(file, [pendulum]), load_tensors(tmp_path / "run.pt"))


def changed(**changes):
    entries = build(layout="2023", dims=TINY)
    entries["model"] |= changes
    return {"model": {name: value for name, value in entries["model"].items() if value is not None}}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (changed(**{"_reward.1.bias": None}), "file does not fit TD-MPC2: _reward.1.bias is missing"),
        (
            changed(**{"_dynamics.0.weight": torch.zeros(24, 20)}),
            r"_dynamics.0.weight has shape \(24, 20\) instead of \(24, 22\)",
        ),
        (
            changed(**{"_Qs.params.8": torch.zeros(3, 51, 24)}),
            r"_Qs.params.2.weight has shape \(3, 51, 24\) instead of",
        ),
        (changed(_decoder=torch.zeros(1)), "_decoder is not known"),
        (changed(**{"_encoder.state.0.weight": None}), "_encoder.state.0.weight is missing"),
        ({"model": {"actor.weight": torch.zeros(1)}}, "file is no checkpoint of TD-MPC2"),
        ({"model": 3}, "file is no checkpoint of TD-MPC2"),
        (build(layout="2023", dims=(16, 24, 12, 2, 3, 12)), "latent_dim 12 must be a multiple of simnorm_dim 8"),
    ],
)
def test_what_does_not_fit_is_named(entries, message):
    with pytest.raises(UserError, match=message):
        AuthorsFile.of(entries, "file")


def test_tasks_that_do_not_fit_are_named():
    file = AuthorsFile.of(build(layout="2023", dims=TINY), "file")
    with pytest.raises(
        UserError, match=r"24 numbers and gives 6 actions, cup-catch need.* 8 numbers and 2: it fits walker"
    ):
        agent_of(file, expand(["cup-catch"]))
    with pytest.raises(UserError, match="mlp_dim is settled by the checkpoint"):
        agent_of(file, mlp_dim=512)
    many = AuthorsFile.of(build(layout="2023", tasks=30, device="meta"), "file")
    with pytest.raises(UserError, match="model of 30 tasks, 80 were given"):
        many.check_tasks(task_set("mt80"))
    other = AuthorsFile.of(build(layout="2025", tasks=30, obs=39, device="meta"), "file")
    with pytest.raises(UserError, match="39 numbers and gives 6 actions, 30 tasks need observations of 24 numbers"):
        other.check_tasks(task_set("mt30"))
    masked = build(layout="2025", tasks=3, dims=TINY)
    masked["model"]["_action_masks"] = torch.ones(3, 6)
    with pytest.raises(UserError, match="other action masks than cup-catch, hopper-hop"):
        agent_of(AuthorsFile.of(masked, "file"), expand(["cup-catch", "walker-walk", "hopper-hop"]))


class Evil:
    def __reduce__(self):
        return (os.system, ("echo run by the file",))


def test_a_file_runs_no_code_and_damage_is_one_line(tmp_path, capfd):
    path = written(tmp_path, {"model": {"_pi.0.weight": Evil()}})
    with pytest.raises(UserError, match="more than tensors"):
        AuthorsFile.read(path)
    assert "run by" not in capfd.readouterr().out
    whole = written(tmp_path, build(layout="2023", dims=TINY)).read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"hello", b"<html>not found</html>"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=re.escape(str(path))) as caught:
            AuthorsFile.read(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no file"):
        AuthorsFile.read(tmp_path / "nowhere.pt")
    torch.save([1], path)
    with pytest.raises(UserError, match="holds a list"):
        AuthorsFile.read(path)


def test_files_in_the_oldest_format_of_torch_are_read(tmp_path):
    path = tmp_path / "old.pt"
    entries = build(layout="2023", dims=TINY)
    torch.save(entries, path, _use_new_zipfile_serialization=False)
    assert_computes_the_same(agent_of(AuthorsFile.read(path)), entries)
