"""Named sets of hyperparameters, and what `bench agents show` says of an agent's settings."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from agents import registry
from agents.registry import BUILT_IN, resolve_hyperparameters
from bench import agent_settings
from bench.__main__ import build_app
from bench.errors import UserError
from bench.tasks import get, tasks

AGENTS = [entry.name for entry in BUILT_IN]


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_has_presets_the_first_of_which_is_its_defaults(name: str) -> None:
    known, walker, obs = registry.presets(name), get("walker-walk"), registry.get(name).obs_kinds[-1]
    plain = resolve_hyperparameters(name, {}, walker, obs)
    assert resolve_hyperparameters(name, {"preset": next(iter(known))}, walker, obs) == plain
    assert "paper" in known
    for preset in list(known)[1:]:
        changed = resolve_hyperparameters(name, {"preset": preset}, walker, obs)
        assert changed != plain
        assert known[preset].values.items() <= changed.items()


def test_a_preset_goes_over_the_tasks_settings_and_under_the_users() -> None:
    cheetah = get("cheetah-run")
    assert resolve_hyperparameters("curl", {}, cheetah, "rgb")["critic_lr"] == 2e-4
    script = resolve_hyperparameters("curl", {"preset": "script", "batch_size": 64}, cheetah, "rgb")
    assert (script["critic_lr"], script["batch_size"], "preset" in script) == (1e-3, 64, False)


def test_an_unknown_preset_is_one_line() -> None:
    with pytest.raises(UserError, match="unknown preset of sac 'autors': did you mean authors"):
        resolve_hyperparameters("sac", {"preset": "autors"})


@pytest.mark.parametrize("name", AGENTS)
def test_protocols_cover_every_task_once(name: str) -> None:
    obs = registry.choose_obs_kind(name, None)
    covered = [task for protocol in agent_settings.protocols(name, obs) for task in protocol.tasks]
    own = [task.name for task in tasks() if obs == "state" or task.domain == "dmcontrol" or ":" in task.simulator_id]
    assert sorted(covered) == sorted(own)
    for protocol in agent_settings.protocols(name, obs):
        for task in map(get, protocol.tasks):
            assert protocol.env_steps == task.budget_env_steps
            assert protocol.hyperparameters == registry.task_defaults(name, task, obs)


def test_each_setting_says_where_it_comes_from() -> None:
    found = agent_settings.settings("tdmpc", {"preset": "pixels-100k", "rho": 0.6}, get("dog-run"), "rgb")
    sources = {setting.key: (setting.value, setting.source) for setting in found}
    assert sources["lr"] == (1e-3, "preset")
    assert sources["rho"] == (0.6, "given")
    assert sources["latent_dim"] == (100, "task")
    assert sources["tau"] == (0.01, "default")


def test_show_on_the_command_line() -> None:
    answer = CliRunner().invoke(build_app(), ["agents", "show", "sac", "preset=authors", "--task", "mw-push", "--json"])
    shown = json.loads(answer.output)
    assert [(row["domain"], row["env_steps"], row["action_repeat"]) for row in shown["protocols"]] == [
        ("metaworld", 2_000_000, 2)
    ]
    assert shown["presets"]["authors"]["values"] == {"batch_size": 1024}
    values = {row["key"]: (row["value"], row["source"]) for row in shown["hyperparameters"]}
    assert values["batch_size"] == (1024, "preset")
    text = CliRunner().invoke(build_app(), ["agents", "show", "tdmpc"]).output
    assert "preset=pixels-100k" in text
    assert "14,000,000" in text
