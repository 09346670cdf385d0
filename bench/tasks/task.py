"""What is known of one task, and the versions of the simulators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from bench.errors import UserError

EVAL_EVERY_AGENT_STEPS = 50_000
"""The paper's interval between evaluations, in every domain."""

DOMAIN_VERSIONS: Mapping[str, str] = MappingProxyType(
    {
        "dmcontrol": "dm_control-1.0.28+mujoco-3.3.0",
        "metaworld": "metaworld-3.1.1+mujoco-3.3.0 (v3 simulation, v2 reward)",
        "maniskill": "mani_skill2-0.5.3+sapien-2.2.2 (dense reward)",
        "myosuite": "myosuite-2.11.6+mujoco-3.3.0",
    }
)
"""What a domain's results were made with. Results of different versions are never mixed without saying so."""


@dataclass(frozen=True)
class Task:
    """One task. The numbers are those of the TD-MPC2 paper (arXiv 2310.16828) and of its published curves.

    Raises:
        UserError: a value that no task can have (only rows that users add can meet it).
    """

    name: str
    domain: str
    """dmcontrol, metaworld, maniskill, myosuite, or a user's own."""
    simulator_id: str
    """How the simulator calls it; for a task of the user's own `gymnasium:<environment id>`, or `module:function` that
    makes its environment (see `bench.envs.make`)."""
    obs_size: int
    """Length of the state observation."""
    action_size: int
    action_repeat: int
    """Env steps in one agent step."""
    episode_agent_steps: int
    """Agent steps in an episode that runs to its time limit."""
    budget_env_steps: int
    """Env steps of training in the published curves (state observations)."""
    metric: Literal["return", "success"]
    tags: frozenset[str] = field(default_factory=frozenset)
    """Sets that the task belongs to, besides its domain."""
    published_name: str = ""
    """The name in the authors' result files; the same as `name` where left empty."""
    domain_version: str = ""
    """The simulator's packages and versions; those of `DOMAIN_VERSIONS` where left empty."""
    terminates: bool = False
    """Whether the simulator may end an episode before its time limit. None of the 104 does."""
    return_range: tuple[float, float] = (0.0, 1000.0)
    """Returns that score 0 and 100 where the metric is return."""

    def __post_init__(self) -> None:
        sizes = (self.obs_size, self.action_size, self.action_repeat, self.episode_agent_steps, self.budget_env_steps)
        if min(sizes) < 1:
            raise UserError(f"task '{self.name}': sizes, repeat, episode length and budget must be at least 1")
        if self.metric not in ("return", "success"):
            raise UserError(f"task '{self.name}': metric is '{self.metric}', valid are return, success")
        low, high = self.return_range
        if not low < high:
            raise UserError(f"task '{self.name}': return_range is {low}, {high}, but the first must be the smaller")
        # A frozen dataclass sets what follows from other fields through object.__setattr__.
        object.__setattr__(self, "tags", frozenset(self.tags))
        object.__setattr__(self, "published_name", self.published_name or self.name)
        version = self.domain_version or DOMAIN_VERSIONS.get(self.domain, "unknown")
        object.__setattr__(self, "domain_version", version)

    @property
    def episode_env_steps(self) -> int:
        """Simulator control steps in an episode; stays the same under another action repeat."""
        return self.episode_agent_steps * self.action_repeat

    @property
    def budget_agent_steps(self) -> int:
        """The budget in actions chosen by the agent."""
        return self.budget_env_steps // self.action_repeat

    @property
    def eval_every_env_steps(self) -> int:
        """Env steps between evaluations: 50,000 agent steps."""
        return EVAL_EVERY_AGENT_STEPS * self.action_repeat

    def score(self, return_: float, success: float) -> float:
        """0-100: where the return lies in `return_range` (return / 10 on DMControl), or success rate x 100.

        Args:
            return_: episode return, or a mean of them.
            success: success rate between 0 and 1.
        """
        low, high = self.return_range
        return (return_ - low) / ((high - low) / 100) if self.metric == "return" else success * 100
