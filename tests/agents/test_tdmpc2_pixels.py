"""TD-MPC2 from images: encoder and random shift in every place where an observation is encoded."""

from dataclasses import replace

import pytest
import torch
from plain_tdmpc2 import CPU, SPEC, PlainRun, make_agent, record
from tdmpc2_parameters import assert_same, batched, plain

from agents.protocol import AgentSpec, Batch
from agents.tdmpc2.agent import TDMPC2
from agents.tdmpc2.hyperparameters import Hyperparameters
from bench.errors import UserError

CLOSE = {"rtol": 1e-7, "atol": 1e-9}
IMAGES = replace(SPEC, obs_kind="rgb", obs_shape=(6, 39, 39), frame_stack=2)
SMALL = {
    "num_channels": 8,
    "latent_dim": 8,
    "num_q": 2,
    "batch_size": 3,
    "horizon": 2,
    "num_samples": 10,
    "iterations": 2,
}


def make(seeds=(1, 2), **overrides):
    return make_agent(seeds=seeds, spec=IMAGES, jitter=0.1, **(SMALL | overrides))


def images(seed, *shape):
    return torch.randint(0, 256, (*shape, 6, 39, 39), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def batch_of(seeds=(1, 2)):
    g = [torch.Generator().manual_seed(seed) for seed in seeds]
    return Batch(
        obs=torch.stack([images(seed, 3, 3) for seed in seeds]),
        action=torch.stack([torch.rand(2, 3, 2, generator=one) * 2 - 1 for one in g]),
        reward=torch.stack([torch.randn(2, 3, generator=one) for one in g]),
        terminated=torch.zeros(len(seeds), 2, 3),
    )


@pytest.mark.usefixtures("double")
class TestAgainstThePlainVersion:
    def test_losses_gradients_and_parameters(self):
        agent = make()
        references = [PlainRun(agent, run) for run in range(2)]
        for repeat in range(2):
            draws, batch = record(agent, "learn"), batch_of((10 + repeat, 20))
            metrics = agent.update(batch)
            for run, reference in enumerate(references):
                expected = reference.update(batch, run, draws.of_run(run))
                assert {name: float(v[run]) for name, v in metrics.items()} == pytest.approx(expected, rel=1e-8)
                assert_same(batched(agent, run), plain(reference), **CLOSE)

    def test_plan_candidate_by_candidate(self):
        """Images are shifted when acting too, as the authors do."""
        agent = make(num_envs=2)
        draws, obs = record(agent, "evaluate"), images(3, 2, 2)
        action = agent.act(obs, torch.ones(2, 2, dtype=torch.bool), False)
        for run in range(2):
            for env in range(2):
                reference = PlainRun(agent, run)
                expected, _ = reference.plan(obs[run, env], torch.zeros(2, 2), env, draws.of_run(run), 2, False)
                torch.testing.assert_close(action[run, env], expected, **CLOSE)

    def test_two_runs_equal_two_single_runs(self):
        fleet, singles = make(), [make(seeds=(seed,)) for seed in (1, 2)]
        metrics = fleet.update(batch_of())
        action = fleet.act(images(3, 2, 1), torch.ones(2, 1, dtype=torch.bool), True)
        for run, single in enumerate(singles):
            alone = single.update(batch_of((run + 1,)))
            for name, value in metrics.items():
                torch.testing.assert_close(value[run], alone[name][0], **CLOSE)
            own = single.act(images(3, 2, 1)[run : run + 1], torch.ones(1, 1, dtype=torch.bool), True)
            torch.testing.assert_close(action[run], own[0], **CLOSE)


def test_a_resumed_agent_goes_on_exactly():
    agent, resumed = make(), make()
    agent.update(batch_of())
    resumed.load_state_dict([agent.state_dict(run) for run in range(2)])
    ours, theirs = agent.update(batch_of((3, 4))), resumed.update(batch_of((3, 4)))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_papers_encoder():
    """Parameters of the published model of images, and PyTorch's own initialisation of convolutions."""
    spec = AgentSpec((9, 64, 64), "rgb", 6, 500, 1000, frame_stack=3)
    agent = TDMPC2(spec, Hyperparameters(), [1, 2], CPU)
    assert agent.model.num_parameters == 4_879_370
    torchs = torch.nn.Conv2d(9, 32, 7)
    layer = agent.model.encoder.convs.layers[0]
    bound = 1 / (9 * 7 * 7) ** 0.5
    for ours, theirs in ((layer.weight, torchs.weight), (layer.bias, torchs.bias)):
        assert float(ours.detach().abs().max()) <= bound
        assert float(ours.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.25)
        assert ours.shape[1:] == theirs.shape
        assert not torch.equal(ours[0], ours[1])
    z = agent.model.encode(torch.zeros(2, 4, 9, 64, 64, dtype=torch.uint8), agent.noise["learn"])
    torch.testing.assert_close(z.unflatten(-1, (64, 8)).sum(-1), torch.ones(2, 4, 64))


def test_a_latent_size_that_the_image_does_not_give_is_refused():
    spec = AgentSpec((9, 84, 84), "rgb", 6, 500, 1000)
    with pytest.raises(UserError, match=r"images of 84 pixels give 1152 features .* set latent_dim=1152"):
        TDMPC2(spec, Hyperparameters(image_size=84), [1], CPU)
    with pytest.raises(UserError, match=r"give 512 features .* latent_dim is 768: .*64 pixels need model_size 5"):
        TDMPC2(replace(spec, obs_shape=(9, 64, 64)), Hyperparameters(model_size=19), [1], CPU)
