from dataclasses import replace

import pytest
import torch
from plain_tdmpc2 import CPU, SPEC, PlainMLP, make_agent
from torch import nn

from agents.activations import mish, norm_mish, simnorm
from agents.nn import MLP, NormedLinear
from agents.tdmpc2.agent import TDMPC2
from agents.tdmpc2.hyperparameters import Hyperparameters
from agents.tdmpc2.world_model import WorldModel

META = torch.device("meta")


def test_simnorm_is_a_softmax_in_each_group():
    x = torch.randn(2, 3, 24) * 5
    z = simnorm(x, 8)
    for run in range(2):
        for row in range(3):
            for group in range(3):
                piece = x[run, row, 8 * group : 8 * group + 8].double().exp()
                torch.testing.assert_close(
                    z[run, row, 8 * group : 8 * group + 8].double(), piece / piece.sum(), rtol=1e-5, atol=1e-7
                )
    torch.testing.assert_close(z.sum(-1), torch.full((2, 3), 3.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mish_and_its_gradient_equal_those_of_torch(dtype):
    x = torch.cat([torch.linspace(-60, 60, 2001), torch.tensor([-1e4, -200.0, 0.0, 19.999, 20.001, 1e4])]).to(dtype)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    grad = torch.randn_like(x)
    mish(ours).backward(grad)
    nn.functional.mish(theirs).backward(grad)
    exact = 1e-6 if dtype == torch.float32 else 1e-12  # the exponential is cut at 20
    torch.testing.assert_close(mish(x), nn.functional.mish(x), rtol=exact, atol=exact)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=2 * exact, atol=2 * exact)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("runs", [1, 3])
def test_norm_and_mish_in_one_step_equal_torchs_layers(runs):
    x, grad = torch.randn(runs, 7, 12) * 3, torch.randn(runs, 7, 12)
    layer = NormedLinear(runs, 12, 12)
    weight, bias = (torch.randn(runs, 1, 12) for _ in range(2))
    ours = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    norm_mish(*ours, layer.norm.eps).backward(grad)
    for run in range(runs):
        theirs = [tensor[run].clone().requires_grad_() for tensor in (x, weight, bias)]
        normed = nn.functional.layer_norm(theirs[0], (12,), theirs[1][0], theirs[2][0], layer.norm.eps)
        nn.functional.mish(normed).backward(grad[run])
        torch.testing.assert_close(norm_mish(x, weight, bias, layer.norm.eps)[run], nn.functional.mish(normed))
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine.grad[run], other.grad)
    with torch.no_grad():
        assert torch.equal(norm_mish(*ours, layer.norm.eps), norm_mish(x, weight, bias, layer.norm.eps))
    only_x = x.clone().requires_grad_()
    norm_mish(only_x, weight, bias, layer.norm.eps).backward(grad)  # fixed parameters
    torch.testing.assert_close(only_x.grad, ours[0].grad)


@pytest.mark.usefixtures("double")
def test_pairs_equal_the_map_of_what_is_joined():
    layer = NormedLinear(2, 5, 6).linear
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x, y = torch.randn(2, 3, 4), torch.randn(2, 3, 7, 1, requires_grad=True)
    joined = torch.cat([x[:, :, None].expand(-1, -1, 7, -1), y], -1).flatten(1, 2)
    torch.testing.assert_close(layer.of_pairs(x, y), layer(joined))
    by_pairs, by_joining = (torch.autograd.grad(f.square().sum(), y) for f in (layer.of_pairs(x, y), layer(joined)))
    torch.testing.assert_close(by_pairs, by_joining)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("run", [0, 1, 2])
def test_every_network_equals_ordinary_layers(run):
    agent = make_agent()
    model, k = agent.model, agent.hp.num_q
    obs, z, action = torch.randn(3, 4, 2, 5), torch.randn(3, 4, 2, 8), torch.randn(3, 4, 2, 2)
    za = torch.cat([z, action], -1)[run]
    raw = PlainMLP(model.policy_head, run)(z[run])
    cases = [
        (model.encode(obs, agent.noise["learn"])[run], PlainMLP(model.encoder, run)(obs[run])),
        (model.next(z, action)[run], PlainMLP(model.dynamics, run)(za)),
        (model.reward(z, action)[run], PlainMLP(model.reward_head, run)(za)),
        (model.policy(z)[0][run], raw[..., :2]),
        (model.policy(z)[1][run], -10 + 6 * (torch.tanh(raw[..., 2:]) + 1)),
    ]
    for head in range(k):
        cases.append((model.q(z, action)[run, head], PlainMLP(model.online_q, run * k + head)(za)))
    heads = torch.tensor([[0, 3], [2, 1], [3, 2]])
    for target, net in ((False, model.online_q), (True, model.target_q)):
        chosen = model.q_heads(z, action, heads, target=target)
        for i in range(2):
            cases.append((chosen[run, i], PlainMLP(net, run * k + int(heads[run, i]))(za)))
    for ours, plain in cases:
        torch.testing.assert_close(ours, plain)


def test_runs_and_heads_differ_but_targets_equal_at_the_start():
    agent = TDMPC2(SPEC, Hyperparameters(model_size=1), [1, 2], CPU)
    weight = agent.model.online_q.hidden[0].linear.weight  # (R K, in, out)
    assert len({float(w) for w in weight[:, 0, 0].detach()}) == 4
    for online, target in zip(agent.model.online_q.parameters(), agent.model.target_q.parameters(), strict=True):
        assert torch.equal(online, target)
        assert online.data_ptr() != target.data_ptr()
        assert not target.requires_grad


def test_chosen_heads_pass_gradients_to_actions_but_not_to_weights():
    model = make_agent().model
    z, action = torch.randn(3, 4, 8), torch.randn(3, 4, 2, requires_grad=True)
    model.q_heads(z, action, torch.zeros(3, 2, dtype=torch.long)).sum().backward()
    assert action.grad is not None
    assert action.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.parameters())


def test_dropout_sits_between_linear_and_norm_of_the_first_layer_only():
    mlp = MLP(2, [3, 6, 6, 4])
    for parameter in mlp.parameters():
        nn.init.normal_(parameter)
    x, keep = torch.randn(2, 5, 3), (torch.rand(2, 5, 6) < 0.5).float() * 2
    for run in range(2):
        plain = PlainMLP(mlp, run)
        hidden = plain.linears[0](x[run]) * keep[run]
        hidden = nn.functional.mish(plain.norms[0](hidden))
        hidden = nn.functional.mish(plain.norms[1](plain.linears[1](hidden)))
        torch.testing.assert_close(mlp(x, keep)[run], plain.linears[2](hidden))
    # A unit that is dropped in every row still has its norm's shift: the mask comes before the norm.
    layer = NormedLinear(1, 3, 6)
    layer.norm.bias.data.fill_(1.0)
    dropped = layer(torch.randn(1, 2, 3), torch.zeros(1, 2, 6))
    torch.testing.assert_close(dropped, nn.functional.mish(torch.ones(1, 2, 6)))


def test_initialisation():
    model = TDMPC2(SPEC, Hyperparameters(), [3], CPU).model
    for name, parameter in model.named_parameters():
        if "norm.weight" in name:
            assert (parameter == 1).all()
        elif name.endswith("bias") or name in ("reward_head.last.weight",) or name.endswith("_q.last.weight"):
            assert (parameter == 0).all(), name
        else:
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.1), name
            assert abs(float(parameter.detach().mean())) < 2e-3, name


def test_reward_and_value_start_at_zero():
    agent = TDMPC2(SPEC, Hyperparameters(model_size=1), [1, 2], CPU)
    z, action = agent.model.encode(torch.randn(2, 7, 5), agent.noise["learn"]), torch.rand(2, 7, 2)
    for logits in (agent.model.reward(z, action), agent.model.q(z, action)):
        assert (logits == 0).all()
        torch.testing.assert_close(agent.scalars.decode(logits), torch.zeros(logits.shape[:-1]), atol=1e-6, rtol=0)


def test_a_run_starts_the_same_in_any_fleet():
    fleet = TDMPC2(SPEC, Hyperparameters(model_size=1), [5, 6, 7], CPU).model
    for run, seed in enumerate((5, 6, 7)):
        alone = TDMPC2(SPEC, Hyperparameters(model_size=1), [seed], CPU).model
        for ours, theirs in zip(fleet.parameters(), alone.parameters(), strict=True):
            assert torch.equal(ours.chunk(3)[run], theirs)


@pytest.mark.parametrize(
    ("model_size", "obs_size", "action_size", "parameters"),
    [
        (1, 24, 6, 1_214_651),
        (1, 5, 1, 1_198_257),
        (5, 24, 6, 4_960_618),
        (5, 223, 38, 5_159_082),
        (19, 24, 6, 18_062_442),
        (48, 24, 6, 47_208_298),
    ],
)
def test_parameter_counts_are_the_published_ones(model_size, obs_size, action_size, parameters):
    for seeds in ([1], [1, 2, 3]):
        spec = replace(SPEC, obs_shape=(obs_size,), action_size=action_size)
        model = WorldModel(spec, Hyperparameters(model_size=model_size), seeds, META)
        assert model.num_parameters == parameters
