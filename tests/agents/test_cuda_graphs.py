"""An agent whose act and update are recorded and replayed is the plain agent, bit by bit.

On a CPU `tape.Tape` does what a CUDA graph does; the tests marked `gpu` record real ones.
"""

from dataclasses import replace

import pytest
import torch
from plain_tdmpc2 import MULTITASK_SPEC, SMALL, SPEC, make_batch
from tape import GpuNoise, Tape, tensors

from agents.protocol import Capturable, Sizes
from agents.tdmpc2 import agent as tdmpc2
from agents.tdmpc2.hyperparameters import Hyperparameters
from baselines.sac import SAC
from bench import cuda_graphs
from bench.errors import UserError

CPU = torch.device("cpu")
RUNS, N = 2, 3
PADDED = replace(SPEC, obs_shape=(5,), action_size=3, sizes=(Sizes(5, 1), Sizes(3, 3)))
IMAGES = replace(SPEC, obs_kind="rgb", obs_shape=(6, 39, 39), frame_stack=2)
SMALL_IMAGES = {"num_channels": 8, "num_q": 2, "num_samples": 10}
SETTINGS = {
    "states": (SPEC, {}),
    "bf16": (SPEC, {"precision": "bf16"}),
    "episodic": (SPEC, {"episodic": True, "uncertainty_coef": 0.5}),
    "paper": (SPEC, {"preset": "paper", "regression": "continuous"}),
    "without mpc": (SPEC, {"mpc": False, "num_pi_trajs": 0, "layer_norm": False}),
    "several tasks": (MULTITASK_SPEC, {}),
    "padded": (PADDED, {}),
    "images": (IMAGES, SMALL_IMAGES),
}


FAST = ("states", "several tasks")
"""Settings of `make test-fast`; all of them are in `make test`."""


@pytest.fixture
def as_on_gpu(monkeypatch):
    monkeypatch.setattr(tdmpc2, "Noise", GpuNoise)


def make(spec=SPEC, agent_class=tdmpc2.TDMPC2, device=CPU, **overrides):
    hyperparameters = Hyperparameters(**(SMALL | {"horizon": 2, "iterations": 2} | overrides))
    return agent_class(replace(spec, num_envs=N), hyperparameters, [1] * RUNS, device)


def recorded(agent):
    """The agent, attached, and the tapes that it makes."""
    tapes = []

    def recorder():
        tapes.append(Tape(agent.generators()))
        return tapes[-1]

    cuda_graphs.attach(agent, recorder)
    return tapes


def observations(call, spec, envs):
    generator = torch.Generator().manual_seed(call)
    if spec.obs_kind == "rgb":
        return torch.randint(0, 256, (RUNS, envs, *spec.obs_shape), dtype=torch.uint8, generator=generator)
    return torch.randn(RUNS, envs, *spec.obs_shape, generator=generator)


def batch_of(call, spec, horizon):
    seeds = [100 * call + run for run in range(RUNS)]
    if spec.obs_kind != "rgb":
        return make_batch(seeds, spec, horizon)
    batch = make_batch(seeds, replace(spec, obs_shape=(1,)), horizon)
    shown = [observations(10 * call + t, spec, 6) for t in range(horizon + 1)]  # six is the batch size
    return replace(batch, obs=torch.stack(shown, 1))


def go_on(agent, spec, calls, device=CPU, evaluated=2):
    """What an agent gives in some rounds of act, update and now and then an evaluation step."""
    given = []
    for call in calls:
        for explore, envs in ((True, N), (False, evaluated)):
            obs = observations(call, spec, envs).to(device)
            first = (torch.arange(RUNS * envs).view(RUNS, envs) % 3 == call % 3).to(device)
            task = (torch.full((RUNS, envs), call % len(spec.tasks), device=device),) if spec.tasks else ()
            given.append(agent.act(obs, first, explore, *task).clone())
        batch = batch_of(call, spec, agent.hp.horizon)
        batch = type(batch)(**{k: v if v is None else v.to(device) for k, v in vars(batch).items()})
        given.append({name: value.clone() for name, value in agent.update(batch).items()})
    return given


def assert_equal(one, other):
    pairs = list(zip(tensors(one), tensors(other), strict=True))
    assert pairs
    for left, right in pairs:
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def states(agent):
    return [agent.state_dict(run) for run in range(RUNS)]


@pytest.mark.usefixtures("as_on_gpu")
class TestReplayed:
    @pytest.mark.parametrize(
        ("spec", "overrides"),
        [
            pytest.param(*setting, id=name, marks=[] if name in FAST else [pytest.mark.whole])
            for name, setting in SETTINGS.items()
        ],
    )
    def test_gives_what_plain_calls_give(self, spec, overrides):
        plain, replayed = make(spec, **overrides), make(spec, **overrides)
        tapes = recorded(replayed)
        assert_equal(go_on(replayed, spec, range(5)), go_on(plain, spec, range(5)))
        assert_equal(states(replayed), states(plain))
        assert [bool(tape.operations) for tape in tapes] == [True] * 3, "both ways to act, and update, were recorded"

    def test_recording_itself_changes_nothing(self):
        agent = make()
        recorded(agent)
        go_on(agent, SPEC, range(cuda_graphs.WARM_UP_CALLS))
        before = states(agent)
        tape = Tape(agent.generators())
        held = {name: value.clone() for name, value in agent.model.state_dict().items()}
        tape.record(lambda: agent.act(observations(9, SPEC, N), torch.zeros(RUNS, N, dtype=torch.bool), True))
        assert_equal(states(agent), before)
        assert_equal(dict(agent.model.state_dict()), held)

    @pytest.mark.whole
    def test_goes_on_from_a_loaded_state(self):
        plain, replayed = make(), make()
        recorded(replayed)
        go_on(replayed, SPEC, range(5))
        go_on(plain, SPEC, range(3))
        replayed.load_state_dict(states(plain))
        assert_equal(go_on(replayed, SPEC, range(3, 8)), go_on(plain, SPEC, range(3, 8)))
        assert_equal(states(replayed), states(plain))

    @pytest.mark.whole
    def test_other_numbers_of_environments_are_recorded_anew(self):
        plain, replayed = make(), make()
        recorded(replayed)
        for calls, envs in ((range(5), 2), (range(5, 10), 4), (range(10, 15), 2)):
            given = [go_on(agent, SPEC, calls, evaluated=envs) for agent in (replayed, plain)]
            assert_equal(*given)

    def test_a_count_in_python_would_be_found(self):
        class Counting(tdmpc2.TDMPC2):
            calls = 0

            def update(self, batch):
                self.calls += 1
                return super().update(replace(batch, reward=batch.reward * self.calls))

        plain, replayed = make(agent_class=Counting), make(agent_class=Counting)
        recorded(replayed)
        given = [go_on(agent, SPEC, range(5)) for agent in (replayed, plain)]
        assert_equal(given[0][: 3 * 4], given[1][: 3 * 4])  # the recording was made with the fourth count, and keeps it
        with pytest.raises(AssertionError):
            assert_equal(*given)

    @pytest.mark.parametrize("wait", [lambda x: x.item(), lambda x: x.nonzero(), lambda x: x[x > 0]])
    def test_a_wait_is_one_clear_line(self, wait):
        class Waiting(tdmpc2.TDMPC2):
            def act(self, obs, first, explore):
                wait(obs.sum().abs() + 1)
                return super().act(obs, first, explore)

        agent = make(agent_class=Waiting)
        recorded(agent)
        with pytest.raises(UserError, match=r"cannot be recorded as a CUDA graph: .* waits.*go without cuda_graphs"):
            go_on(agent, SPEC, range(5))


def test_an_agent_that_cannot_be_recorded_is_named():
    agent = SAC(SPEC, SAC.Hyperparameters(hidden_dim=8), [1], CPU)
    assert not isinstance(agent, Capturable)
    with pytest.raises(UserError, match="SAC cannot be recorded as CUDA graphs: go without cuda_graphs"):
        cuda_graphs.attach(agent)


def test_a_cpu_has_nothing_to_record():
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        cuda_graphs.attach(make())


@pytest.mark.gpu
@pytest.mark.parametrize(("spec", "overrides"), SETTINGS.values(), ids=SETTINGS)
def test_cuda_graphs_give_what_plain_calls_give(spec, overrides):
    """Not run so far: no GPU was at hand."""
    device = torch.device("cuda")
    plain, replayed = make(spec, device=device, **overrides), make(spec, device=device, **overrides)
    cuda_graphs.attach(replayed)
    given = [go_on(agent, spec, range(7), device) for agent in (replayed, plain)]
    for left, right in zip(tensors(given[0]), tensors(given[1]), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)
    for left, right in zip(tensors(states(replayed)), tensors(states(plain)), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)
