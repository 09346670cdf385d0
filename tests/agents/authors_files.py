"""Checkpoints as the authors' code writes them, built from the lists of keys, and what their tensors compute.

Shares no code with the reader: functions on the tensors of a file by their names there.
"""

from itertools import pairwise

import torch
from torch.nn import functional as F

SIZES = {  # enc_dim, mlp_dim, latent_dim, encoder layers, Q-functions, task_dim of mt30
    1: (256, 384, 128, 2, 2, 96),
    5: (256, 512, 512, 2, 5, 64),
    19: (1024, 1024, 768, 3, 5, 64),
    48: (1792, 1792, 768, 4, 5, 64),
    317: (4096, 4096, 1376, 5, 8, 96),
}
BINS = 101
LN = ("weight", "bias", "ln.weight", "ln.bias")


def build(
    size=1, layout="2023", tasks=0, obs=24, action=6, episodic=False, rgb=False, device="cpu", wrap=True, dims=None
):
    """A state dict. `tasks`: rows of the embedding; `device="meta"` gives shapes without numbers."""
    e, m, latent, layers, k, task_dim = dims or SIZES[size]
    if not tasks:
        t = 0
    else:
        t = task_dim if tasks == 30 or dims else 96
        latent = 512 if (size, tasks) == (19, 30) else latent
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        if device == "meta":
            return torch.empty(*shape, device="meta")
        return torch.randn(*shape, generator=g) / (shape[-1] ** 0.5 if len(shape) > 1 else 3.0)

    out = {}

    def stack(prefix, sizes, norm_last, members=()):
        for i, (inputs, outputs) in enumerate(pairwise(sizes)):
            shapes = [(outputs, inputs), (outputs,), (outputs,), (outputs,)]
            last = i == len(sizes) - 2
            for name, shape in list(zip(LN, shapes, strict=True))[: 2 if last and not norm_last else 4]:
                out[f"{prefix}.{i}.{name}"] = draw(*members, *shape)

    if rgb:
        for i, (inputs, kernel) in zip((2, 4, 6, 8), ((9, 7), (32, 5), (32, 3), (32, 3)), strict=True):
            out[f"_encoder.rgb.{i}.weight"] = draw(32, inputs, kernel, kernel) / kernel
            out[f"_encoder.rgb.{i}.bias"] = draw(32)
    else:
        stack("_encoder.state", [obs + t, *[e] * max(layers - 1, 1), latent], True)
    stack("_dynamics", [latent + t + action, m, m, latent], True)
    stack("_reward", [latent + t + action, m, m, BINS], False)
    if episodic:
        stack("_termination", [latent + t, m, m, 1], False)
    stack("_pi", [latent + t, m, m, 2 * action], False)
    if tasks:
        out["_task_emb.weight"] = draw(tasks, t)
    for prefix in ("_Qs.params", "_target_Qs_params"):
        stack(prefix, [latent + t + action, m, m, BINS], False, members=(k,))
    out = _laid_out(out, layout, k)
    if layout != "2023":
        out["log_std_min"], out["log_std_dif"] = torch.tensor(-10), torch.tensor(12)
    return {"model": out} if wrap else out


def _laid_out(named, layout, k):
    if layout == "2023":
        out = {}
        for name, tensor in named.items():
            prefix, _, rest = name.partition("params.")
            if "Qs" in prefix:
                layer, _, part = rest.partition(".")
                name = f"{prefix.replace('_target_Qs_', '_target_Qs.')}params.{4 * int(layer) + LN.index(part)}"
            out[name] = tensor
        return out
    out = dict(named)
    copies = {"_detach_Qs_params.": "_Qs.params."}
    if layout == "2024":
        copies |= {"_detach_Qs.params.": "_Qs.params.", "_target_Qs.params.": "_target_Qs_params."}
    for copy, original in copies.items():
        out |= {name.replace(original, copy): x for name, x in named.items() if name.startswith(original)}
    for prefix in ("_Qs.params.", "_target_Qs_params.", *copies):
        out[f"{prefix}__batch_size"] = torch.Size([k])
        out[f"{prefix}__device"] = torch.device("cuda:0")
    return out


def by_name(entries):
    """The tensors of a file under the names of the current layout, for `Plain`."""
    entries = entries.get("model", entries)
    out = {}
    for name, value in entries.items():
        prefix, _, rest = name.partition("params.")
        if rest.isdigit():
            name = f"{prefix.replace('_target_Qs.', '_target_Qs_')}params.{int(rest) // 4}.{LN[int(rest) % 4]}"
        out[name] = value
    return out


class Plain:
    """What the networks of a file compute, from its tensors alone, one sample after the other not needed."""

    def __init__(self, entries):
        self.t = by_name(entries)

    def stack(self, prefix, x, member=None, simplices=False):
        pick = (lambda v: v) if member is None else (lambda v: v[member])
        layers = 1 + max(
            int(n[len(prefix) + 1 :].split(".")[0])
            for n in self.t
            if n.startswith(f"{prefix}.") and n.endswith("weight")
        )
        for i in range(layers):
            x = F.linear(x, pick(self.t[f"{prefix}.{i}.weight"]), pick(self.t[f"{prefix}.{i}.bias"]))
            if f"{prefix}.{i}.ln.weight" in self.t:
                scale, shift = (pick(self.t[f"{prefix}.{i}.ln.{part}"]) for part in ("weight", "bias"))
                x = F.layer_norm(x, x.shape[-1:], scale, shift)
                last = i == layers - 1
                x = x.view(*x.shape[:-1], -1, 8).softmax(-1).flatten(-2) if last and simplices else F.mish(x)
        return x

    def embed(self, task):
        """Rows of the table, none longer than 1."""
        rows = self.t["_task_emb.weight"][task]
        return rows / rows.norm(dim=-1, keepdim=True).clamp(min=1)

    def images(self, shifted):
        x = shifted.float() / 255 - 0.5
        for i, stride in ((2, 2), (4, 2), (6, 2), (8, 1)):
            x = F.conv2d(x, self.t[f"_encoder.rgb.{i}.weight"], self.t[f"_encoder.rgb.{i}.bias"], stride)
            x = x if i == 8 else x.relu()
        return x.flatten(1).view(len(x), -1, 8).softmax(-1).flatten(-2)
