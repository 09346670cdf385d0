"""Products in bfloat16 against float32, and CUDA's switches, which must not reach from one agent to another."""

from __future__ import annotations

import copy

import pytest
import torch
from plain_tdmpc2 import make_agent, make_batch
from small_settings import SMALL
from torch.nn import functional as F

import agents.nn
from agents import registry
from agents.conv import Conv2d, ConvLayer, ConvStack
from agents.nn import MLP, Linear
from agents.precision import Products, in_own_precision
from agents.protocol import AgentSpec, Batch
from bench.errors import UserError
from bench.runspec import RunSpec

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SIZES = {"curl": 20}
"""Of pictures in pixels, where it is not 16."""
AGENTS = ("tdmpc2", "sac", "curl", "drqv2")
LOSSES = ("consistency_loss", "reward_loss", "value_loss", "total_loss", "pi_loss")
ROUNDING = 2.0**-8
"""Of one number to bfloat16, relative."""


def drawn(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def in_bf16(module):
    Products("bf16", CPU, [module])
    return module


def first_moments(agent):
    """0.1 x the clipped gradients of each network's parameters after one update."""
    states = agent.optimizer.state | agent.policy_optimizer.state
    networks = ("encoder", "dynamics", "reward_head", "policy_head", "online_q")
    return {
        name: torch.cat([states[p]["exp_avg"].flatten() for p in getattr(agent.model, name).parameters()])
        for name in networks
    }


def pixel_agent(name, **overrides):
    size = SIZES.get(name, 16)
    spec = AgentSpec((9, size, size), "rgb", 2, 100, 10_000)
    hyperparameters = registry.resolve_hyperparameters(name, SMALL[name] | overrides, None, "rgb")
    entry = registry.get(name)
    return entry.load()(spec, entry.hyperparameters_model()(**hyperparameters), [1, 2], CPU)


def pixel_batch(agent):
    generator = torch.Generator().manual_seed(0)
    size, length = agent.hyperparameters.image_size, agent.replay.length
    return Batch(
        obs=torch.randint(0, 256, (2, length, 8, 9, size, size), generator=generator, dtype=torch.uint8),
        action=torch.randn(2, length - 1, 8, 2, generator=generator).tanh(),
        reward=torch.randn(2, length - 1, 8, generator=generator),
        terminated=torch.zeros(2, length - 1, 8),
    )


# Layers


def test_a_product_in_bf16_is_one_of_rounded_numbers():
    layer = in_bf16(drawn(Linear(2, 30, 7)))
    x = torch.randn(2, 5, 30)
    exact = x.bfloat16().double() @ layer.weight.bfloat16().double()
    out = layer(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close((out - layer.bias).double(), exact, rtol=ROUNDING, atol=1e-5)
    assert not torch.equal(out, torch.baddbmm(layer.bias, x, layer.weight))


def test_it_adds_up_in_float32():
    """A sum of ones in bfloat16 would stop at 256."""
    layer = in_bf16(Linear(1, 4096, 1))
    with torch.no_grad():
        layer.weight.fill_(1.0)
    assert layer(torch.ones(1, 1, 4096)).item() == 4096.0


def test_gradients_in_bf16_are_float32_and_near():
    mine, plain = in_bf16(drawn(MLP(2, [6, 16, 16, 3]))), drawn(MLP(2, [6, 16, 16, 3]))
    x = torch.randn(2, 50, 6)
    for network in (mine, plain):
        network(x).square().mean().backward()
    for one, other in zip(mine.parameters(), plain.parameters(), strict=True):
        assert one.dtype == one.grad.dtype == torch.float32
        assert (one.grad - other.grad).norm() < 0.03 * other.grad.norm()


def test_pairs_in_bf16_are_near():
    layer, x, y = drawn(Linear(2, 9, 4)), torch.randn(2, 5, 6), torch.randn(2, 5, 8, 3)
    expected = layer.of_pairs(x, y)
    assert (in_bf16(layer).of_pairs(x, y) - expected).norm() < 0.01 * expected.norm()


def test_convolutions_in_bf16_are_near_and_give_float32():
    stack = drawn(ConvStack(2, (3, 12, 12), [ConvLayer(6, 3, 2), ConvLayer(5, 3, 1)]))
    images = torch.rand(2, 64, 3, 12, 12) - 0.5
    expected = stack(images)
    expected.sum().backward()
    gradients = [p.grad.clone() for p in stack.parameters()]
    stack.zero_grad()
    found = in_bf16(stack)(images)
    found.sum().backward()
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 0.01 * expected.norm()
    for parameter, before in zip(stack.parameters(), gradients, strict=True):
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - before).norm() < 0.03 * before.norm()


def test_float32_layers_are_torchs_to_the_bit():
    linear, conv = drawn(Linear(2, 8, 5)), drawn(Conv2d(1, 3, 4, 3))
    x, images = torch.randn(2, 6, 8), torch.randn(1, 5, 3, 9, 9)
    for precision in (None, "float32"):
        if precision:
            Products(precision, CPU, [linear, conv])
        assert torch.equal(linear(x), torch.baddbmm(linear.bias, x, linear.weight))
        assert torch.equal(conv(images)[0], F.conv2d(images[0], conv.weight[0], conv.bias[0]))


# Agents


def test_the_default_is_float32():
    for name in AGENTS:
        assert registry.resolve_hyperparameters(name, {})["precision"] == "float32"
        assert "precision" not in registry.free_hyperparameters(name)  # it changes the speed


def test_losses_and_gradients_of_tdmpc2_are_near(monkeypatch):
    """One update from the same parameters with the same draws. Norm and Mish get float32."""
    seen = set()

    def watched(x, *arguments, inner=agents.nn.norm_mish):
        seen.add(x.dtype)
        return inner(x, *arguments)

    monkeypatch.setattr(agents.nn, "norm_mish", watched)
    plain, mine = make_agent(), make_agent(precision="bf16")
    expected, found = (agent.update(make_batch(size=64)) for agent in (plain, mine))
    for name in LOSSES:
        torch.testing.assert_close(found[name], expected[name], rtol=0.02, atol=0.005)
    for name, gradient in first_moments(plain).items():
        difference = (first_moments(mine)[name] - gradient).norm() / gradient.norm()
        assert 0 < difference < 0.05, name
    assert seen == {torch.float32}
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert {p.dtype for p in mine.model.parameters()} == {torch.float32}
    moments = [value for state in mine.optimizer.state.values() for value in state.values()]
    assert {value.dtype for value in moments} == {torch.float32}


@pytest.mark.parametrize("overrides", [{"mpc": False}, {"num_pi_trajs": 0}])
def test_actions_of_tdmpc2_in_bf16(overrides):
    plain, mine = make_agent(**overrides), make_agent(precision="bf16", **overrides)
    obs, first = torch.randn(3, 1, 5), torch.ones(3, 1, dtype=torch.bool)
    if "mpc" in overrides:  # a plan may pick another elite
        torch.testing.assert_close(mine.act(obs, first, False), plain.act(obs, first, False), rtol=0, atol=0.02)
    z = plain.model.encode(obs, plain.noise["learn"]).unsqueeze(2)
    actions = torch.rand(3, 3, 1, 20, 2) * 2 - 1
    draws = [copy.deepcopy(plain.noise["learn"]) for _ in range(2)]
    values = [
        agent.planner.estimate_value(z, actions, noise) for agent, noise in zip((plain, mine), draws, strict=True)
    ]
    assert values[1].dtype == torch.float32
    assert (values[1] - values[0]).norm() < 0.05 * values[0].norm()
    assert mine.act(obs, first, True).dtype == torch.float32


@pytest.mark.parametrize("name", ["sac", "curl", "drqv2"])
def test_losses_from_pixels_are_near(name):
    plain, mine = pixel_agent(name), pixel_agent(name, precision="bf16")
    expected, found = (agent.update(pixel_batch(agent)) for agent in (plain, mine))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0.03, atol=0.03)
    assert any(not torch.equal(found[key], expected[key]) for key in expected)
    obs = pixel_batch(plain).obs[:, 0, :3]
    first = torch.ones(2, 3, dtype=torch.bool)
    torch.testing.assert_close(mine.act(obs, first, False), plain.act(obs, first, False), rtol=0, atol=0.02)


def test_checkpoints_go_from_one_precision_to_another():
    plain, mine = make_agent(), make_agent(precision="bf16", jitter=0.1)
    plain.update(make_batch())
    mine.load_state_dict([plain.state_dict(run) for run in range(3)])
    for one, other in zip(mine.model.state_dict().values(), plain.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    mine.update(make_batch())
    plain.load_state_dict([mine.state_dict(run) for run in range(3)])
    expected = make_agent()
    expected.load_state_dict([mine.state_dict(run) for run in range(3)])
    for agent in (plain, expected):
        agent.update(make_batch())
    for one, other in zip(plain.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_agent_does_not_notice_another_of_other_precision():
    alone, beside, other = make_agent(), make_agent(), make_agent(precision="bf16")
    for seed in (5, 6):
        other.update(make_batch(seeds=(seed, 2, 3)))
        for agent in (alone, beside):
            agent.update(make_batch(seeds=(seed, 2, 3)))
            if agent is alone:
                other.act(torch.randn(3, 1, 5), torch.ones(3, 1, dtype=torch.bool), True)
    for one, another in zip(alone.model.parameters(), beside.model.parameters(), strict=True):
        assert torch.equal(one, another)


# CUDA's switches, which exist without a GPU too


def switches():
    matmul = torch.backends.cuda.matmul
    conv = torch.backends.cudnn.conv
    return matmul.fp32_precision, conv.fp32_precision, matmul.allow_bf16_reduced_precision_reduction


@pytest.mark.parametrize(
    ("precision", "wanted"),
    [("float32", ("ieee", "ieee", False)), ("tf32", ("tf32", "tf32", False)), ("bf16", ("ieee", "ieee", False))],
)
def test_switches_hold_while_the_agent_computes(precision, wanted):
    class Agent:
        products = Products(precision, CUDA, [])

        @in_own_precision
        def update(self, other):
            inside = [switches()]
            if other is not None:
                inside += [other.update(None), switches()]
            return inside

        @in_own_precision
        def fails(self):
            raise ValueError

    before = switches()
    other = Agent()
    other.products = Products("tf32", CUDA, [])
    assert Agent().update(other) == [wanted, [("tf32", "tf32", False)], wanted]
    assert switches() == before
    with pytest.raises(ValueError):
        Agent().fails()
    assert switches() == before


def test_a_cpu_leaves_the_switches_alone():
    before = switches()
    with Products("bf16", CPU, []).switched():
        assert switches() == before


# Mistakes


@pytest.mark.parametrize("name", AGENTS)
def test_tf32_on_a_cpu_is_one_line(name):
    with pytest.raises(UserError, match=r"^precision=tf32 needs an NVIDIA GPU .*: a CPU has float32 and bf16$"):
        make_agent(precision="tf32") if name == "tdmpc2" else pixel_agent(name, precision="tf32")


@pytest.mark.parametrize("name", AGENTS)
def test_a_misspelt_precision_is_one_line(name):
    with pytest.raises(UserError, match="precision = 'bf61': Input should be 'float32', 'tf32' or 'bf16'"):
        registry.resolve_hyperparameters(name, {"precision": "bf61"})


def test_it_is_part_of_what_a_run_is():
    hashes = {
        RunSpec(
            agent="tdmpc2", task="walker-walk", domain="dmcontrol", domain_version="1", seed=1, action_repeat=2,
            budget_env_steps=10, eval_every_env_steps=10,
            hyperparameters=registry.resolve_hyperparameters("tdmpc2", {"precision": precision}),
        ).hash
        for precision in ("float32", "tf32", "bf16")
    }  # fmt: skip
    assert len(hashes) == 3
