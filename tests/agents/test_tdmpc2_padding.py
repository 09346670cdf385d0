"""Padded fleets: each run, whatever its sizes, is what it is alone."""

from dataclasses import replace

import pytest
import torch
from plain_tdmpc2 import CPU, SMALL, SPEC, make_batch

from agents.multitask import pad
from agents.noise import Noise
from agents.protocol import Sizes, TaskSpec
from agents.tdmpc2.agent import TDMPC2
from agents.tdmpc2.hyperparameters import Hyperparameters
from bench.errors import UserError

SIZES = (Sizes(5, 1), Sizes(3, 3), Sizes(4, 2))  # none has both the largest observation and the largest action
PADDED = replace(SPEC, obs_shape=(5,), action_size=3, num_envs=2, sizes=SIZES)
SEEDS = (1, 2, 3)
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
WHAT = {
    "current": {},
    "paper": {"preset": "paper"},
    "without mpc": {"mpc": False},
    "episodic": {"episodic": True, "uncertainty_coef": 0.5},
    "fast": {"lr": 0.03, "grad_clip_norm": 0.5, "tau": 0.3},  # clipped, and far from where it began
    "plain networks": {"layer_norm": False, "simnorm": False, "regression": "continuous", "num_enc_layers": 3},
}
LONG = ("paper", "fast")
"""Of `make test` alone."""


def alone(run):
    return replace(SPEC, obs_shape=(SIZES[run].obs,), action_size=SIZES[run].action, num_envs=2)


def make(spec, seeds, **overrides):
    return TDMPC2(spec, Hyperparameters(**SMALL | {"iterations": 2} | overrides), seeds, CPU)


def pair(jitter=0.3, **overrides):
    """A fleet and its runs alone, all parameters moved at random so that nothing is zero by chance."""
    singles = [make(alone(run), [seed], **overrides) for run, seed in enumerate(SEEDS)]
    fleet = make(PADDED, SEEDS, **overrides)
    if jitter:
        for run, single in enumerate(singles):
            generator = torch.Generator().manual_seed(run)
            for parameter in single.model.parameters():
                parameter.data += jitter * torch.randn(parameter.shape, generator=generator)
        fleet.load_state_dict([single.state_dict(0) for single in singles])
    return fleet, singles


def inputs(call, envs):
    """Observations of each run in its own sizes."""
    generators = [torch.Generator().manual_seed(100 * run + call) for run in range(3)]
    return [torch.randn(1, envs, own.obs, generator=g) for own, g in zip(SIZES, generators, strict=True)]


def batches(call):
    return [make_batch((10 * run + call,), spec=alone(run)) for run in range(3)]


def together(parts, last):
    return torch.cat([pad(part, last) for part in parts])


def padded_batch(parts):
    whole = make_batch(SEEDS, spec=PADDED)
    whole.obs = together([part.obs for part in parts], 5)
    whole.action = together([part.action for part in parts], 3)
    whole.reward = torch.cat([part.reward for part in parts])
    whole.terminated = torch.cat([part.terminated for part in parts])
    return whole


def live(fleet, singles, runs, calls):
    """Act, evaluate and learn, the fleet of `runs` beside the single runs; what comes out must be the same."""
    for call in calls:
        for explore, envs in ((True, 2), (False, 4)):
            obs, first = inputs(call, envs), torch.full((3, envs), call % 3 == 0)
            action = fleet.act(together([obs[run] for run in runs], 5), first[: len(runs)], explore)
            for index, run in enumerate(runs):
                size = SIZES[run].action
                torch.testing.assert_close(
                    action[index, :, :size], singles[run].act(obs[run], first[:1], explore)[0], **CLOSE
                )
                assert (action[index, :, size:] == 0).all()
        parts = batches(call)
        metrics = fleet.update(padded_batch([parts[run] for run in runs]))
        for index, run in enumerate(runs):
            own = singles[run].update(parts[run])
            assert own.keys() == metrics.keys()
            for name, value in own.items():
                torch.testing.assert_close(metrics[name][index], value[0], **CLOSE)


def leaves(value, where=""):
    """Every tensor and number of a state, but for how many runs the fleet had."""
    if isinstance(value, dict):
        return [leaf for key, one in value.items() if key != "runs" for leaf in leaves(one, f"{where}.{key}")]
    if isinstance(value, list):
        return [leaf for key, one in enumerate(value) for leaf in leaves(one, f"{where}[{key}]")]
    return [(where, torch.as_tensor(value))]


def assert_same_state(left, right, exact=False):
    left, right = leaves(left), leaves(right)
    assert [(name, part.shape) for name, part in left] == [(name, part.shape) for name, part in right]
    for (name, one), (_, other) in zip(left, right, strict=True):
        if exact or not one.is_floating_point():
            assert torch.equal(one, other), name
        else:
            torch.testing.assert_close(one, other, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.usefixtures("double")
class TestAgainstSingleRuns:
    @pytest.mark.parametrize("what", ["current", "episodic"])
    def test_it_begins_as_the_same(self, what):
        fleet, singles = pair(jitter=0.0, **WHAT[what])
        for run, single in enumerate(singles):
            assert_same_state(fleet.state_dict(run), single.state_dict(0), exact=True)

    @pytest.mark.parametrize("what", [pytest.param(w, marks=[pytest.mark.whole] if w in LONG else []) for w in WHAT])
    def test_actions_losses_and_states(self, what):
        fleet, singles = pair(**WHAT[what])
        live(fleet, singles, (0, 1, 2), range(3))
        for run, single in enumerate(singles):
            assert_same_state(fleet.state_dict(run), single.state_dict(0))

    def test_a_run_leaves_and_joins(self):
        """Single runs go on in a padded fleet, in another order, and its runs alone again."""
        fleet, singles = pair()
        live(fleet, singles, (0, 1, 2), range(2))
        spec = replace(PADDED, sizes=tuple(SIZES[run] for run in (2, 0)))
        regrouped = make(spec, [70, 80])
        regrouped.load_state_dict([fleet.state_dict(2), singles[0].state_dict(0)])
        again = [make(alone(run), [90]) for run in range(3)]
        for run in range(3):
            again[run].load_state_dict([fleet.state_dict(run)])
            assert_same_state(again[run].state_dict(0), fleet.state_dict(run), exact=True)
        live(regrouped, again, (2, 0), range(2, 4))
        live(fleet, singles, (0, 1, 2), range(2, 4))
        for index, run in enumerate((2, 0)):
            assert_same_state(regrouped.state_dict(index), singles[run].state_dict(0))

    def test_what_a_run_lacks_stays_zero(self):
        fleet, singles = pair(lr=0.03)
        live(fleet, singles, (0, 1, 2), range(3))
        for run in range(3):
            padded = {name: part.chunk(3)[run] for name, part in fleet.model.state_dict().items()}
            cut = {name: fleet.model.padding.cut(name, part, run) for name, part in padded.items()}
            for name, part in padded.items():
                assert part.count_nonzero() == cut[name].count_nonzero(), name


def test_a_run_draws_what_it_draws_alone():
    fleet = Noise(SEEDS, "learn", CPU, [1, 3, 2])
    for shape in ((4, 3), (2, 5, 3)):
        drawn = fleet.normal(*shape)
        gumbel = fleet.gumbel(4)
        for run, size in enumerate((1, 3, 2)):
            single = Noise([SEEDS[run]], "learn", CPU)
            if len(shape) == 3:
                single.normal(4, size)
                single.gumbel(4)
            assert torch.equal(drawn[run, ..., :size], single.normal(*shape[:-1], size)[0])
            assert (drawn[run, ..., size:] == 0).all()
            assert torch.equal(gumbel[run], single.gumbel(4)[0])


def test_in_float32_a_padded_run_is_as_near_as_in_any_fleet():
    fleet, singles = pair()
    metrics = fleet.update(padded_batch(batches(0)))
    for run, single in enumerate(singles):
        for name, value in single.update(batches(0)[run]).items():
            torch.testing.assert_close(metrics[name][run], value[0], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_size": 20, "sizes": (Sizes(5, 20), Sizes(5, 19))}, "planned differently"),
        ({"tasks": (TaskSpec("a", 5, 2, 100),)}, "one task with state observations only"),
    ],
)
def test_what_cannot_be_padded_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make(replace(PADDED, **({"sizes": SIZES[:2]} | changes)), SEEDS[:2])


@pytest.mark.parametrize("mpc", [True, False])
def test_numbers_drawn_for_what_a_run_lacks_are_masked(mpc):
    """As on a GPU, where one generator draws for the whole fleet in the largest size."""
    fleet, _ = pair(mpc=mpc)
    for noise in fleet.noise.values():
        noise.sizes = ()
    lacks = fleet.model.padding.context.action_mask == 0  # (R, 1, A)
    for explore in (True, False):
        action = fleet.act(together(inputs(0, 2), 5), torch.zeros(3, 2, dtype=torch.bool), explore)
        assert (action[lacks.expand(-1, 2, -1)] == 0).all()
        assert (action[~lacks.expand(-1, 2, -1)] != 0).all()
    for _ in range(2):
        fleet.update(padded_batch(batches(0)))
    for run in range(3):
        for name, part in fleet.model.state_dict().items():
            own = part.chunk(3)[run]
            assert own.count_nonzero() == fleet.model.padding.cut(name, own, run).count_nonzero(), name
