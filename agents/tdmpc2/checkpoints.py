"""The authors' checkpoints as agents: what their shapes say, whether they fit, and for which tasks.

Files are read with `weights_only`, so that one from the internet runs no code.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from agents.multitask import multitask_spec
from agents.protocol import AgentSpec
from agents.tdmpc2.agent import TDMPC2
from agents.tdmpc2.authors_layout import ACTION_MASKS, BUFFERS, authors_name, from_authors, hidden_layers, to_authors
from agents.tdmpc2.authors_shapes import CONV_ENCODER, CONV_INDEX, AuthorsShapes
from agents.tdmpc2.hyperparameters import Hyperparameters
from agents.tdmpc2.world_model import WorldModel
from bench.errors import UserError
from bench.tasks import Task, tasks

IMAGE_SIZE = 64
"""Height and width of the images of all published models."""
SHOWN = 4
"""Names in an error message, before it only counts them."""


class AuthorsFile(AuthorsShapes):
    """A checkpoint of the authors, understood: it has every tensor of a model, and no other."""

    @classmethod
    def read(cls, path: Path) -> AuthorsFile:
        """Read a file; its tensors stay on the disk until they are used.

        Raises:
            UserError: no such file, one that is damaged or holds more than tensors, or no checkpoint of TD-MPC2.
        """
        return cls.of(load_tensors(path), str(path))

    @classmethod
    def of(cls, entries: Any, name: str) -> Self:
        """The same from the loaded dictionary."""
        file = super().of(entries, name)
        file._check()
        return file

    @property
    def _obs_shape(self) -> tuple[int, ...]:
        if self.obs_kind == "state":
            return (self.obs_size,)
        return (self._shape(f"{CONV_ENCODER}.{CONV_INDEX[0]}.weight")[1], IMAGE_SIZE, IMAGE_SIZE)

    def _meta_spec(self) -> AgentSpec:
        """A specification that fits the shapes, whatever the tasks are."""
        some = multitask_spec(tasks()[:1]).tasks * self.num_tasks
        return AgentSpec(self._obs_shape, self.obs_kind, self.action_size, 500, 1, tasks=some)

    def _meta_model(self) -> WorldModel:
        """A model of these shapes, without numbers."""
        try:
            hp = Hyperparameters(**self.architecture, episodic=self.has_termination)
        except ValueError as error:
            raise UserError(f"{self.name} does not fit TD-MPC2: {error}") from error
        return WorldModel(self._meta_spec(), hp, [0], torch.device("meta"))

    def _check(self) -> None:
        """Every tensor must be there and have the shape that follows from the others."""
        expected = {name: tensor.shape for name, tensor in to_authors(self._meta_model().state_dict()).items()}
        unused = {name for name in self.tensors if name in BUFFERS or self._other_encoder(name)}
        wrong = [
            f"{name} has shape {tuple(self.tensors[name].shape)} instead of {tuple(shape)}"
            for name, shape in expected.items()
            if name in self.tensors and self.tensors[name].shape != shape
        ]
        wrong += [f"{name} is missing" for name in expected if name not in self.tensors]
        wrong += [f"{name} is not known" for name in self.tensors if name not in expected and name not in unused]
        if wrong:
            raise UserError(f"{self.name} does not fit TD-MPC2: {_some(wrong)}")

    def _other_encoder(self, name: str) -> bool:
        return self.obs_kind == "rgb" and name.startswith("_encoder.state.")

    # The agent

    def check_tasks(self, chosen: Sequence[Task]) -> None:
        """Whether the model is of these tasks: one, or all of a multi-task model in the order of their numbers.

        Raises:
            UserError: it is not; says what differs and what fits.
        """
        if len(chosen) != max(self.num_tasks, 1):
            raise UserError(
                f"{self.name} is a model of {self.num_tasks or 1} tasks, {len(chosen)} were given: name them all, in "
                "the order of its embeddings"
            )
        obs_size = max(task.obs_size for task in chosen) if self.obs_kind == "state" else None
        action_size = max(task.action_size for task in chosen)
        ours = self.obs_size if self.obs_kind == "state" else None
        if (obs_size, action_size) != (ours, self.action_size):
            whose = f"{len(chosen)} tasks" if self.num_tasks else chosen[0].name
            raise UserError(
                f"{self.name} takes {_numbers(ours)} and gives {self.action_size} actions, {whose} need "
                f"{_numbers(obs_size)} and {action_size}" + ("" if self.num_tasks else f": {self._fitting()}")
            )
        masks = self.tensors.get(ACTION_MASKS)
        if masks is not None and not masks.is_meta:
            sizes = masks.sum(1).int().tolist()
            off = [t.name for t, size in zip(chosen, sizes, strict=True) if t.action_size != size]
            if off:
                raise UserError(f"{self.name} has other action masks than {_some(off)}: its tasks are others")

    def _fitting(self) -> str:
        fit = [t.name for t in tasks() if (t.obs_size, t.action_size) == (self.obs_size, self.action_size)]
        return f"it fits {_some(fit)}" if fit else "it fits no task of the table"

    def agent(
        self, chosen: Sequence[Task], overrides: Mapping[str, Any], seed: int, device: torch.device
    ) -> tuple[TDMPC2, AgentSpec]:
        """The agent of this file, and what it was told of its tasks.

        Args:
            chosen: its task, or all tasks of a multi-task model in order.
            overrides: hyperparameters other than the architecture's, such as `mpc`.
            seed: of its noise.
            device: where it acts.

        Raises:
            UserError: the tasks are not those of the model, or an override changes the architecture.
        """
        self.check_tasks(chosen)
        clash = sorted(self.architecture.keys() & overrides.keys())
        if clash:
            raise UserError(f"{clash[0]} is settled by the checkpoint {self.name}: leave it out")
        # A head of a task that never ends by itself was made but not trained.
        episodic = self.has_termination and any(task.terminates for task in chosen)
        hp = Hyperparameters(**({"episodic": episodic} | self.architecture | dict(overrides)))
        if self.num_tasks:
            spec = multitask_spec(chosen)
        else:
            one = chosen[0]
            spec = AgentSpec(
                self._obs_shape,
                self.obs_kind,
                one.action_size,
                one.episode_agent_steps,
                one.budget_agent_steps,
                frame_stack=self._obs_shape[0] // 3 if self.obs_kind == "rgb" else 1,
            )
        agent = TDMPC2(spec, hp, [seed], device)
        agent.model.load_state_dict(self.parameters(agent.model.state_dict()))
        return agent, spec

    def parameters(self, names: Collection[str]) -> dict[str, Tensor]:
        """The parameters of one run under our `names`, of all networks that a model has; still on the disk."""
        depth = hidden_layers(names)
        return {name: from_authors(name, self.tensors[authors_name(name, depth)]) for name in names}

    def every_parameter(self) -> dict[str, Tensor]:
        """The parameters of one run under our names, the termination head's too where there is one."""
        return self.parameters(self._meta_model().state_dict())


def load_tensors(path: Path) -> Mapping[str, Any]:
    """The dictionary in a file of torch, its tensors mapped from the disk where the format allows it.

    Raises:
        UserError: no such file, or one that is damaged, foreign or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise UserError(f"no file {path}: give a checkpoint (.pt) or a run directory")
    try:
        with path.open("rb") as file:
            mapped = file.read(4) == b"PK\x03\x04"  # the format of today; older files are read whole
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors and plain values, or is no checkpoint; it was not loaded, because that "
            "could run code from the file"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        raise UserError(f"{path} is damaged or no checkpoint ({type(error).__name__}): download it again") from error
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not a checkpoint")
    return loaded


def _numbers(obs_size: int | None) -> str:
    return "images" if obs_size is None else f"observations of {obs_size} numbers"


def _some(items: Sequence[str]) -> str:
    more = f" … ({len(items)} in all)" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more
