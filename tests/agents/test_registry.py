"""Names of agents, and hyperparameters: the user's, else those by the task, else the agent's own."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, ConfigDict, Field

from agents import entries, registry
from agents.entries import AgentEntry
from agents.registry import resolve_hyperparameters
from bench.errors import UserError
from bench.tasks import Task, get


class Hyperparameters(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    horizon: int = Field(default=3, ge=1)
    discount: float = Field(default=0.99, ge=0, le=1)

    extra: ClassVar[dict[str, Any]] = {}

    @classmethod
    def task_defaults(cls, task: Task, obs: str) -> dict[str, Any]:
        return ({"horizon": 5 if obs == "state" else 2} if task.domain == "metaworld" else {}) | cls.extra


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = AgentEntry("toy", "nowhere:Toy", "test_registry:Hyperparameters", ("state", "rgb"), None, "a toy")
    monkeypatch.setattr(registry, "BUILT_IN", (*registry.BUILT_IN, entry))
    monkeypatch.setattr(entries, "_resolve", lambda path: Hyperparameters)


def test_defaults_by_the_task_lie_between_the_users_values_and_the_agents_own() -> None:
    metaworld, dmcontrol = get("mw-assembly"), get("cup-catch")
    assert resolve_hyperparameters("toy", {}, metaworld) == {"horizon": 5, "discount": 0.99}
    assert resolve_hyperparameters("toy", {}, metaworld, "rgb")["horizon"] == 2
    assert resolve_hyperparameters("toy", {}, dmcontrol)["horizon"] == 3
    assert resolve_hyperparameters("toy", {}, None)["horizon"] == 3
    assert resolve_hyperparameters("toy", {"horizon": 7, "discount": 0.5}, metaworld) == {"horizon": 7, "discount": 0.5}


def test_a_rule_that_sets_what_the_agent_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hyperparameters, "extra", {"horizn": 1})
    with pytest.raises(UserError, match=r"unknown hyperparameter of toy \(set by its task_defaults\) 'horizn'"):
        resolve_hyperparameters("toy", {}, get("cup-catch"))


def test_mistakes_are_one_line() -> None:
    with pytest.raises(UserError, match=r"^unknown hyperparameter of toy 'horizn': did you mean horizon"):
        resolve_hyperparameters("toy", {"horizn": 3}, get("cup-catch"))
    with pytest.raises(UserError, match=r"^toy: horizon = 0: Input should be greater than or equal to 1$"):
        resolve_hyperparameters("toy", {"horizon": 0}, get("mw-assembly"))
    with pytest.raises(UserError, match=r"^unknown agent 'sacc': did you mean sac\?$"):
        registry.get("sacc")
