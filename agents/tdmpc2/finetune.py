"""Finetuning: an agent of one new task that starts from the parameters of a trained model, of one task or of several.

As in the paper (few-shot experiments and their appendix): the whole model goes on learning online, from an empty replay
and with the hyperparameters of training from scratch, the seed phase of random actions included. A multi-task model
keeps its task embedding: the new agent has one of its own, which starts as that of a similar task and is learned with
the rest. It could be folded into the biases of the first layers instead (they add W e + b) and the agent would be an
ordinary one of one task; but then each network would learn a bias of its own, while one embedding of T numbers moves
all networks together along the directions in which the model has learned to tell tasks apart, which is what few samples
can settle.

Sizes need not agree. A multi-task model sees observations padded with zeros, and gives actions whose padding is masked,
so cutting the padding away changes nothing that it computes. Where the new task is larger than the model, it ignores
the further inputs at first (their weights start at zero), and further actions start as those of a new agent.

Optimisers, the running scale of Q, replay and all random numbers start anew; the target Q-functions are the model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from agents.tdmpc2.checkpoints import AuthorsFile, load_tensors
from agents.tdmpc2.parameter_sizes import EMBEDDING, ParameterSizes, copy_common
from agents.tdmpc2.world_model import WorldModel
from bench.errors import UserError

TERMINATION = "termination_head."


def read_parameters(path: Path) -> dict[str, Tensor]:
    """The parameters of one run by our names, from a checkpoint of a run of tdmpc2 or from an authors' file.

    Raises:
        UserError: no such file, or none of the two.
    """
    entries = load_tensors(path)
    if "format_version" not in entries:
        return AuthorsFile.of(entries, str(path)).every_parameter()
    try:
        parameters: dict[str, Tensor] = dict(entries["agent"]["model"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is no checkpoint of tdmpc2") from error
    return parameters


@torch.no_grad()
def start_from(model: WorldModel, parameters: Mapping[str, Tensor], embedding: int | Literal["mean"] | None) -> None:
    """Let every run of a new model start from the parameters of a trained one.

    Args:
        model: of one task; it has a task embedding if, and only if, the trained one has some.
        parameters: of one run of the trained one, by our names.
        embedding: the row of its table that the new task's embedding starts as, or the mean of all rows.

    Raises:
        UserError: the two have different architectures.
    """
    runs, state = model.runs, model.state_dict()
    source, target = ParameterSizes.of(parameters), ParameterSizes.of(state)
    for name, own in state.items():
        if name.startswith(TERMINATION) and name not in parameters:
            continue  # a head that the model lacks is new
        if name not in parameters:
            raise UserError(f"the checkpoint has no {name}, which the agent needs: its architecture is another one")
        trained = parameters[name]
        for part in own.chunk(runs):
            if name == EMBEDDING:
                assert embedding is not None
                row = trained.mean(1) if embedding == "mean" else trained[:, embedding]
                part.copy_(row[:, None])
            else:
                _copy(name, part, trained, source, target)


def _copy(name: str, part: Tensor, trained: Tensor, source: ParameterSizes, target: ParameterSizes) -> None:
    """Take over what a parameter has in common with the trained one."""
    axis, theirs = source.blocks(name)
    _, ours = target.blocks(name)
    shape = list(part.shape)
    if axis >= 0:
        shape[axis] = sum(theirs)
    if list(trained.shape) != shape:
        raise UserError(
            f"the checkpoint's {name} has shape {tuple(trained.shape)} instead of {tuple(shape)}: its architecture is "
            "another one"
        )
    if axis < 0:
        part.copy_(trained)
        return
    if axis == 1:
        part.zero_()  # inputs that the trained model does not have
    copy_common(part, ours, trained, theirs, axis)
