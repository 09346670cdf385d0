"""What the names and shapes of an authors' checkpoint say of its model. Light: imports no torch.

A file holds `{"model": state dict}` or the state dict alone, of one agent: parameters only. Three layouts are known:

- `2023`, that of the published files: parameters of the ensemble by number, `_Qs.params.0` … `9`;
- `2025`, the current one: by name, `_Qs.params.0.weight` …, with a second copy under `_detach_Qs_params` and entries
  that are no tensors;
- `2024`, in between: as `2025`, with further copies under `_detach_Qs.params` and `_target_Qs.params`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from agents.tdmpc2.hyperparameters import ARCHITECTURES, MT30_ARCHITECTURES
from bench.errors import UserError

CONV_ENCODER, CONV_INDEX = "_encoder.rgb", (2, 4, 6, 8)
EMBEDDING = "_task_emb.weight"
IN_LAYER = ("weight", "bias", "ln.weight", "ln.bias")
"""Parameters of one layer in the order in which the layout of 2023 numbers them."""
COPIES = re.compile(r"_detach_Qs[._]params\.|_Qs\.params\.__|_target_Qs[._]params\.__")
"""Second copies, and entries that are no tensors."""


def layout_of(entries: Mapping[str, Any]) -> str:
    """The layout of a state dict: 2023, 2024 or 2025."""
    if "_Qs.params.0" in entries:
        return "2023"
    return "2024" if "_target_Qs.params.0.weight" in entries and "_target_Qs_params.0.weight" in entries else "2025"


def current_names(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors or arrays among the entries, under the names of the current layout."""
    tensors = {}
    layout = layout_of(entries)
    for name, value in entries.items():
        flat = re.fullmatch(r"(_Qs\.params|_target_Qs\.params)\.(\d+)", name)
        if flat:
            layer, part = divmod(int(flat[2]), len(IN_LAYER))
            name = f"{flat[1]}.{layer}.{IN_LAYER[part]}"
        if COPIES.match(name) or (name.startswith("_target_Qs.params.") and not flat and layout == "2024"):
            continue
        name = name.replace("_target_Qs.params.", "_target_Qs_params.")
        if hasattr(value, "shape"):
            tensors[name] = value
    return tensors


@dataclass(frozen=True)
class AuthorsShapes:
    """A checkpoint of the authors, as far as shapes tell.

    Attributes:
        name: of the file, for messages.
        layout: "2023", "2024" or "2025".
        tensors: by the names of the current layout, without copies; torch's or numpy's.
    """

    name: str
    layout: str
    tensors: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, entries: Any, name: str) -> Self:
        """From the loaded dictionary.

        Raises:
            UserError: it is no checkpoint of TD-MPC2.
        """
        entries = entries.get("model", entries) if isinstance(entries, Mapping) else entries
        if not isinstance(entries, Mapping) or "_pi.0.weight" not in entries:
            raise UserError(f"{name} is no checkpoint of TD-MPC2: it holds no policy (_pi.0.weight)")
        return cls(name, layout_of(entries), current_names(entries))

    def _shape(self, tensor: str) -> tuple[int, ...]:
        if tensor not in self.tensors:
            raise UserError(f"{self.name} does not fit TD-MPC2: {tensor} is missing")
        return tuple(self.tensors[tensor].shape)

    @property
    def num_tasks(self) -> int:
        """Tasks of a multi-task model; 0 for a model of one task."""
        return self._shape(EMBEDDING)[0] if EMBEDDING in self.tensors else 0

    @property
    def task_dim(self) -> int:
        """Size of the task embedding; 0 for a model of one task."""
        return self._shape(EMBEDDING)[1] if self.num_tasks else 0

    @property
    def obs_kind(self) -> Literal["state", "rgb"]:
        """`state` or `rgb`. An agent for images made after one for states in the same process has both encoders."""
        return "rgb" if f"{CONV_ENCODER}.{CONV_INDEX[0]}.weight" in self.tensors else "state"

    @property
    def obs_size(self) -> int:
        """Size of a state observation."""
        return self._shape("_encoder.state.0.weight")[1] - self.task_dim

    @property
    def action_size(self) -> int:
        """A, of the largest action."""
        return self._shape("_pi.2.weight")[0] // 2

    @property
    def architecture(self) -> dict[str, Any]:
        """The hyperparameters that the shapes give; model_size only if it is one of the authors'."""
        latent = self._shape("_pi.0.weight")[1] - self.task_dim
        widths = {"mlp_dim": self._shape("_pi.0.weight")[0], "latent_dim": latent}
        widths |= {"num_q": self._shape("_Qs.params.0.weight")[0], "num_bins": self._shape("_reward.2.weight")[0]}
        if self.num_tasks:
            widths["task_dim"] = self.task_dim
        if self.obs_kind == "state":
            layers = sum(re.fullmatch(r"_encoder\.state\.\d+\.weight", name) is not None for name in self.tensors)
            widths |= {"num_enc_layers": layers, "enc_dim": self._shape("_encoder.state.0.weight")[0]}
        else:
            widths["num_channels"] = self._shape(f"{CONV_ENCODER}.{CONV_INDEX[0]}.weight")[0]
        for size, known in ARCHITECTURES.items():
            for variant in (known, known | MT30_ARCHITECTURES.get(size, {})):
                if all(widths.get(key, value) == value for key, value in variant.items()):
                    widths["model_size"] = size
        return widths | self._log_std()

    def _log_std(self) -> dict[str, float]:
        low, range_ = (self.tensors.get(name) for name in ("log_std_min", "log_std_dif"))
        if low is None or range_ is None or getattr(low, "is_meta", False):
            return {}
        return {"log_std_min": float(low), "log_std_max": float(low) + float(range_)}

    @property
    def has_termination(self) -> bool:
        """Whether there is a termination head. Some files have one that was never trained: only tasks tell."""
        return "_termination.0.weight" in self.tensors
