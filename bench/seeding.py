"""Seeds that derive from what they are for, the same on every machine and in every process."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any printable parts: `derive_seed(run_seed, "train", env_index, episode)`."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def episode_seed(run_seed: int, purpose: str, env_index: int, episode: int) -> int:
    """The seed that an environment is reset with, below 2**31 so that every simulator takes it.

    Args:
        run_seed: the run's seed.
        purpose: "train", or "evaluate/<agent_steps>" so that evaluation never touches training.
        env_index: which of the run's N environments (or evaluation episodes).
        episode: count of episodes in that environment, from 0.
    """
    return derive_seed("episode", run_seed, purpose, env_index, episode) % 2**31
