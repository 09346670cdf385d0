"""What conditions a multi-task model on the task that each sample belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agents.protocol import TaskSpec
from agents.tdmpc2.hyperparameters import Hyperparameters

EMBEDDING_INIT = 0.02
MAX_NORM = 1.0
NORM_EPS = 1e-7


@dataclass(frozen=True)
class TaskContext:
    """The tasks of a batch (R, ...), spelled out for the networks."""

    embedding: Tensor  # (R, ..., T)
    action_mask: Tensor  # (R, ..., A): 1 on the dimensions that the task's action has, 0 on the padding
    action_size: Tensor  # (R, ...), of the task
    discount: Tensor  # (R, ...)

    def unsqueeze(self, dim: int) -> TaskContext:
        """The same with a batch axis of size 1 at `dim`, to go with samples that have one more axis there."""
        return TaskContext(
            self.embedding.unsqueeze(dim),
            self.action_mask.unsqueeze(dim),
            self.action_size.unsqueeze(dim),
            self.discount.unsqueeze(dim),
        )

    def detach(self) -> TaskContext:
        """The same without a gradient to the embeddings."""
        return TaskContext(self.embedding.detach(), self.action_mask, self.action_size, self.discount)


class TaskTable(nn.Module):
    """A learned embedding of each task, of norm 1 at most, beside what the task table says of it.

    Args:
        runs: R.
        tasks: in the order of their numbers in batches.
        action_size: A, the largest of them or more.
        hp: size of the embedding, and the rule that gives a discount by episode length.
        device: where it lives.
    """

    def __init__(
        self, runs: int, tasks: Sequence[TaskSpec], action_size: int, hp: Hyperparameters, device: torch.device
    ) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(runs, len(tasks), hp.task_dim, device=device))
        sizes = torch.tensor([task.action_size for task in tasks], device=device)
        mask = (torch.arange(action_size, device=device) < sizes[:, None]).to(self.embedding.dtype)
        discount = torch.tensor(
            [hp.discount(task.episode_agent_steps) for task in tasks], dtype=mask.dtype, device=device
        )
        self.register_buffer("action_mask", mask, persistent=False)  # (tasks, A)
        self.register_buffer("discount", discount, persistent=False)  # (tasks,)
        self.action_mask: Tensor
        self.discount: Tensor

    @property
    def num_tasks(self) -> int:
        """Rows of the table."""
        return self.embedding.shape[1]

    @torch.no_grad()
    def initialise(self, generators: Sequence[torch.Generator]) -> None:
        """Uniform in (-0.02, 0.02), each run by its own generator."""
        for part, generator in zip(self.embedding, generators, strict=True):
            part.copy_((torch.rand(part.shape, generator=generator) * 2 - 1) * EMBEDDING_INIT)

    def forward(self, task: Tensor) -> TaskContext:
        """The context of tasks (R, ...) int64. Their rows of the table are cut to norm 1 first, in place."""
        index = task.flatten(1)  # (R, M)
        self._renormalise(index)
        rows = index[..., None].expand(-1, -1, self.embedding.shape[2])
        mask = self.action_mask[task]
        return TaskContext(
            embedding=self.embedding.gather(1, rows).unflatten(1, task.shape[1:]),
            action_mask=mask,
            action_size=mask.sum(-1),
            discount=self.discount[task],
        )

    @torch.no_grad()
    def _renormalise(self, index: Tensor) -> None:
        """As `torch.nn.Embedding(max_norm=1)` does, without waiting for the device. Rows not looked up stay."""
        norm = self.embedding.norm(dim=2)  # (R, tasks)
        looked_up = torch.zeros_like(norm).scatter_(1, index, 1.0) > 0
        scale = torch.where(looked_up & (norm > MAX_NORM), MAX_NORM / (norm + NORM_EPS), 1.0)
        self.embedding.mul_(scale[..., None])
