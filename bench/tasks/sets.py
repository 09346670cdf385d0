"""The names in each set of tasks. `mt30` and `mt80` are in the order of the paper's multi-task task ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_MT30 = _names(
    "walker-stand walker-walk walker-run cheetah-run reacher-easy reacher-hard acrobot-swingup pendulum-swingup "
    "cartpole-balance cartpole-balance-sparse cartpole-swingup cartpole-swingup-sparse cup-catch finger-spin "
    "finger-turn-easy finger-turn-hard fish-swim hopper-stand hopper-hop walker-walk-backwards walker-run-backwards "
    "cheetah-run-backwards cheetah-run-front cheetah-run-back cheetah-jump hopper-hop-backwards reacher-three-easy "
    "reacher-three-hard cup-spin pendulum-spin"
)
METAWORLD = _names(
    "assembly basketball button-press-topdown button-press-topdown-wall button-press button-press-wall coffee-button "
    "coffee-pull coffee-push dial-turn disassemble door-open door-close drawer-close drawer-open faucet-open "
    "faucet-close hammer handle-press-side handle-press handle-pull-side handle-pull lever-pull peg-insert-side "
    "peg-unplug-side pick-out-of-hole pick-place pick-place-wall plate-slide plate-slide-side plate-slide-back "
    "plate-slide-back-side push-back push push-wall reach reach-wall shelf-place soccer stick-push stick-pull "
    "sweep-into sweep window-open window-close bin-picking box-close door-lock door-unlock hand-insert"
)
_MT80 = [*_MT30, *(f"mw-{name}" for name in METAWORLD)]

LOCOMOTION = _names("dog-stand dog-walk dog-trot dog-run humanoid-stand humanoid-walk humanoid-run")
NEW = _names(
    "walker-walk-backwards walker-run-backwards cheetah-run-backwards cheetah-run-front cheetah-run-back cheetah-jump "
    "hopper-hop-backwards reacher-three-easy reacher-three-hard cup-spin pendulum-spin"
)
_SPARSE = _names(
    "cartpole-balance-sparse cartpole-swingup-sparse cup-catch finger-spin finger-turn-easy finger-turn-hard "
    "reacher-easy reacher-hard reacher-three-easy reacher-three-hard"
)
_VISUAL = _names(
    "acrobot-swingup cheetah-run finger-spin finger-turn-easy finger-turn-hard quadruped-walk reacher-easy "
    "reacher-hard walker-run walker-walk"
)
_ABLATION = _names("dog-run humanoid-walk pick-ycb")

BY_TAG: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "mt30": _MT30,
        "mt80": _MT80,
        "locomotion": LOCOMOTION,
        "dmc-hard": LOCOMOTION,  # what later papers call the same seven
        "new": NEW,
        "sparse": _SPARSE,
        "visual": _VISUAL,
        "ablation": _ABLATION,
    }
)

MULTITASK_SETS: Mapping[int, str] = MappingProxyType({30: "mt30", 80: "mt80"})
"""The sets that the paper's multi-task models learn, by their number of tasks."""
