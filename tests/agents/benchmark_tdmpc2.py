"""What each way of being fast gives TD-MPC2 on a CPU: the agent, the agent without one of them, and ordinary torch.

    python tests/agents/benchmark_tdmpc2.py                       # one thread, by CPU time: other load matters little
    python tests/agents/benchmark_tdmpc2.py --threads 2           # by wall time: wants an idle machine
    python tests/agents/benchmark_tdmpc2.py --only "all ways" "a fleet of 4"

Every variant is a process of its own, and they take turns call by call, so that a change of the machine meets them all.
Walker-walk's sizes, synthetic batches. Ratios are medians over the rounds, with the quartiles in brackets.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from unittest import mock

import torch
from eager_tdmpc2 import EagerTDMPC2

import agents.nn
from agents.activations import layer_norm
from agents.noise import Noise
from agents.protocol import AgentSpec, Batch, Sizes
from agents.tdmpc2 import world_model
from agents.tdmpc2.agent import TDMPC2
from agents.tdmpc2.hyperparameters import Hyperparameters
from agents.tdmpc2.planner import Planner
from agents.tdmpc2.world_model import WorldModel
from bench import cpu

WALKER = AgentSpec(
    obs_shape=(24,), obs_kind="state", action_size=6, episode_agent_steps=500, budget_agent_steps=250_000
)
CARTPOLE = replace(WALKER, obs_shape=(5,), action_size=1)
# Walker, cheetah, finger-spin and cartpole.
MIXED = replace(WALKER, sizes=(Sizes(24, 6), Sizes(17, 6), Sizes(9, 2), Sizes(5, 1)))
CPU = torch.device("cpu")
CALLS = ("update", "act")


def every_head(self, z, action, heads, tasks=None, target=False, keep=None):
    """All Q-functions of one run, of which two are then used; without gradient to their parameters."""
    net = self.target_q if target else self.online_q
    if keep is not None:
        keep = keep[:, :1].expand(-1, self.num_q, -1, -1)
    weights = {name: p.detach() for name, p in net.named_parameters()}
    logits = self._ensemble(net, weights, self.num_q, z, tasks, action, keep)
    return logits[torch.arange(len(heads))[:, None], heads]


def unit_by_unit(self, p, *shape):
    return torch.empty(self.runs, *shape).bernoulli_(1 - p, generator=self.generators[0]).div_(1 - p)


def joined(x, tasks, action=None):
    if action is None:
        return x.flatten(1, -2), None
    return torch.cat([x.expand(*action.shape[:-1], -1), action], -1).flatten(1, -2), None


def each_time(self, z, actions, noise, tasks=None, known=None, plan=Planner.estimate_value):
    return plan(self, z, actions, noise, tasks)


def torchs_layers(x, weight, bias, eps):
    return torch.nn.functional.mish(layer_norm(x, weight, bias, eps))


def torchs_simnorm(x, group):
    return x.unflatten(-1, (-1, group)).softmax(-1).flatten(-2)


# What is put in the place of one way.
UNDONE = {
    "two Q-functions only": mock.patch.object(WorldModel, "q_heads", every_head),
    "freed memory kept": mock.patch.object(cpu, "keep_freed_memory"),
    "oneDNN's products": mock.patch.dict(os.environ, {cpu.MATMUL_VARIABLE: "mkl"}),
    "norm and Mish in one step": mock.patch.object(agents.nn, "norm_mish", torchs_layers),
    "SimNorm over the other axis": mock.patch.object(agents.nn, "simnorm", torchs_simnorm),
    "policy's trajectories once": mock.patch.object(Planner, "estimate_value", each_time),
    "first layer in parts": mock.patch.object(world_model, "_inputs", joined),
    "dropout by distances": mock.patch.object(Noise, "dropout_mask", unit_by_unit),
}
ALL, ORDINARY, BF16 = "all ways", "ordinary torch", "all ways, precision=bf16"
FLEETS = {"a fleet of 4": WALKER, "a padded fleet of 4": MIXED, "a fleet of 4 in cartpole's sizes": CARTPOLE}
VARIANTS = [ALL, ORDINARY, *(f"without {way}" for way in UNDONE), *FLEETS, BF16]


def runs_of(variant: str) -> int:
    return 4 if variant in FLEETS else 1


def serve(variant: str, model_size: int, threads: int) -> None:
    """Answer each line (`update` or `act`) with the time in ms that the call took."""
    runs, spec = runs_of(variant), FLEETS.get(variant, WALKER)
    (obs_size,), action_size = spec.obs_shape, spec.action_size
    with UNDONE.get(variant.removeprefix("without "), nullcontext()):
        if variant == ORDINARY:
            torch.set_num_threads(threads)
        else:
            cpu.prepare_cpu(threads)
        hyperparameters = Hyperparameters(model_size=model_size, precision="bf16" if variant == BF16 else "float32")
        agent = TDMPC2(spec, hyperparameters, list(range(runs)), CPU)
        hp = agent.hp
        if variant == ORDINARY:
            agent = EagerTDMPC2(agent, seed=0)
        else:
            cpu.choose_matmul(agent)
        shape = (runs, hp.horizon, hp.batch_size)
        obs = torch.randn(runs, hp.horizon + 1, hp.batch_size, obs_size)
        action, shown = torch.rand(*shape, action_size) * 2 - 1, torch.randn(runs, 1, obs_size)
        for run, own in enumerate(spec.sizes):
            obs[run, ..., own.obs :] = shown[run, :, own.obs :] = action[run, ..., own.action :] = 0
        batch = Batch(obs, action, torch.randn(shape), torch.zeros(shape))
        first = torch.zeros(runs, 1, dtype=torch.bool)
        clock = time.process_time if threads == 1 else time.perf_counter
        calls = {"update": lambda: agent.update(batch), "act": lambda: agent.act(shown, first, True)}
        for line in sys.stdin:
            begin = clock()
            calls[line.strip()]()
            sys.stdout.write(f"{1000 * (clock() - begin)}\n")
            sys.stdout.flush()


def measure(variants: list[str], rounds: int, options: list[str]) -> dict[tuple[str, str], list[float]]:
    """Times in ms of every variant and call, round by round."""
    processes = {
        variant: subprocess.Popen(
            [sys.executable, __file__, "--serve", variant, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for variant in variants
    }

    def ask(variant: str, call: str) -> float:
        pipe_in, pipe_out = processes[variant].stdin, processes[variant].stdout
        assert pipe_in is not None
        assert pipe_out is not None
        pipe_in.write(f"{call}\n")
        pipe_in.flush()
        return float(pipe_out.readline())

    times: dict[tuple[str, str], list[float]] = {(variant, call): [] for variant in variants for call in CALLS}
    for number in range(-2, rounds):
        for call in CALLS:
            for variant in variants if number % 2 else variants[::-1]:
                took = ask(variant, call)
                if number >= 0:
                    times[variant, call].append(took)
        sys.stderr.write(f"\rround {max(number + 1, 0)} of {rounds} ")
    sys.stderr.write("\n")
    for process in processes.values():
        process.communicate()
    return times


def table(variants: list[str], times: dict[tuple[str, str], list[float]]) -> str:
    """Medians, and the ratio of each variant to the first in the same round (for each run)."""
    lines = ["| variant | update, ms | ratio | act, ms | ratio |", "|---|--:|--:|--:|--:|"]
    for variant in variants:
        cells = []
        for call in CALLS:
            own = times[variant, call]
            ratio = runs_of(variants[0]) / runs_of(variant)
            ratios = [ratio * a / b for a, b in zip(own, times[variants[0], call], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            cells += [f"{statistics.median(own):.0f}", f"{middle:.2f} [{low:.2f}, {high:.2f}]"]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--model-size", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=VARIANTS, help="the first is what ratios are to")
    parser.add_argument("--serve", choices=VARIANTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.model_size, given.threads)
        return
    options = ["--threads", str(given.threads), "--model-size", str(given.model_size)]
    times = measure(given.only, given.rounds, options)
    clock = "CPU" if given.threads == 1 else "wall"
    sys.stdout.write(
        f"size {given.model_size}, {given.threads} threads, {clock} time, {given.rounds} rounds, torch "
        f"{torch.__version__}, {platform.machine()}\n{table(given.only, times)}\n"
    )


if __name__ == "__main__":
    main()
