"""Hyperparameters that make each agent small enough to train in a test. Every agent of the suite has a row."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, dict[str, Any]] = {
    "tdmpc2": {
        "enc_dim": 16,
        "mlp_dim": 16,
        "latent_dim": 16,
        "num_q": 2,
        "num_samples": 16,
        "num_elites": 4,
        "num_pi_trajs": 2,
        "iterations": 1,
        "batch_size": 8,
    },
    "tdmpc": {
        "enc_dim": 16,
        "mlp_dim": 16,
        "latent_dim": 8,
        "num_channels": 4,
        "image_size": 42,
        "num_samples": 40,
        "num_elites": 6,
        "iterations": 2,
        "batch_size": 8,
    },
    "sac": {"hidden_dim": 16, "batch_size": 8, "image_size": 16, "num_channels": 2, "feature_dim": 8},
    "drqv2": {"hidden_dim": 16, "batch_size": 8, "image_size": 16, "num_channels": 2, "feature_dim": 8},
    "curl": {
        "hidden_dim": 16,
        "batch_size": 8,
        "image_size": 20,
        "crop_size": 16,
        "num_channels": 2,
        "feature_dim": 8,
    },
}
