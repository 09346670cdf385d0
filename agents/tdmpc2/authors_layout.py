"""Parameters of ours and of the authors' checkpoints: names and axes of both. The layouts are in `authors_shapes`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from agents.tdmpc2.authors_shapes import CONV_ENCODER, CONV_INDEX, EMBEDDING
from agents.tdmpc2.world_model import WorldModel

NETWORKS = {
    "encoder": "_encoder.state",
    "dynamics": "_dynamics",
    "reward_head": "_reward",
    "termination_head": "_termination",
    "policy_head": "_pi",
    "online_q": "_Qs.params",
    "target_q": "_target_Qs_params",
}
"""Our networks and the authors' prefixes of the current layout."""
ENSEMBLES = ("online_q", "target_q")
DETACHED = "_detach_Qs_params"
ACTION_MASKS = "_action_masks"
BUFFERS = ("log_std_min", "log_std_dif", ACTION_MASKS)


def export(model: WorldModel, run: int) -> dict[str, Any]:
    """One run in the authors' current layout, as they would have saved it: `torch.save(export(model, 0), path)`."""
    part = {name: tensor.chunk(model.runs)[run].detach().cpu() for name, tensor in model.state_dict().items()}
    entries: dict[str, Any] = to_authors(part)
    online = f"{NETWORKS['online_q']}."
    entries |= {
        name.replace(online, f"{DETACHED}."): tensor for name, tensor in entries.items() if name.startswith(online)
    }
    for prefix in (NETWORKS["online_q"], DETACHED, NETWORKS["target_q"]):
        entries |= {f"{prefix}.__batch_size": torch.Size([model.num_q]), f"{prefix}.__device": torch.device("cpu")}
    entries["log_std_min"] = _scalar(model.log_std_min)
    entries["log_std_dif"] = _scalar(model.log_std_max - model.log_std_min)
    if model.tasks is not None:
        entries[ACTION_MASKS] = model.tasks.action_mask.cpu()
    plain = torch.contiguous_format
    return {
        "model": {name: x.clone(memory_format=plain) if isinstance(x, Tensor) else x for name, x in entries.items()}
    }


def _scalar(value: float) -> Tensor:
    """As theirs: an integer where it is one."""
    return torch.tensor(int(value) if float(value).is_integer() else value)


# Names and axes. Ours: weights (R, in, out), biases and norms (R, 1, out), an ensemble's members on the first axis.


def hidden_layers(names: Iterable[str]) -> dict[str, int]:
    """Hidden layers of each network."""
    depth: dict[str, int] = {}
    for name in names:
        found = re.match(r"(\w+)\.hidden\.(\d+)\.", name)
        if found:
            depth[found[1]] = max(depth.get(found[1], 0), int(found[2]) + 1)
    return depth


def authors_name(name: str, depth: Mapping[str, int]) -> str:
    """Their name in the current layout for one of our parameters."""
    if name == "tasks.embedding":
        return EMBEDDING
    conv = re.fullmatch(r"encoder\.convs\.layers\.(\d+)\.(\w+)", name)
    if conv:
        return f"{CONV_ENCODER}.{CONV_INDEX[int(conv[1])]}.{conv[2]}"
    found = re.fullmatch(r"(\w+)\.(?:hidden\.(\d+)|last)\.(?:(linear|norm)\.)?(weight|bias)", name)
    assert found is not None, name
    network, layer, part, kind = found.groups()
    return f"{NETWORKS[network]}.{layer or depth[network]}.{'ln.' if part == 'norm' else ''}{kind}"


def to_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of one run's model under their names, in their axes."""
    depth = hidden_layers(state)
    return {authors_name(name, depth): _axes_of_authors(name, tensor) for name, tensor in state.items()}


def _axes_of_authors(name: str, tensor: Tensor) -> Tensor:
    if name == "tasks.embedding" or name.startswith("encoder.convs."):
        return tensor.squeeze(0)
    is_matrix = name.endswith("weight") and ".norm." not in name
    tensor = tensor.transpose(1, 2) if is_matrix else tensor.squeeze(1)
    return tensor if name.startswith(ENSEMBLES) else tensor.squeeze(0)


def from_authors(name: str, tensor: Tensor) -> Tensor:
    """Our parameter `name` of one run, from their tensor."""
    if name == "tasks.embedding" or name.startswith("encoder.convs."):
        return tensor[None]
    tensor = tensor if name.startswith(ENSEMBLES) else tensor[None]
    is_matrix = name.endswith("weight") and ".norm." not in name
    return tensor.transpose(1, 2) if is_matrix else tensor[:, None]
