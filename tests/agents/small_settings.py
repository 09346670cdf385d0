"""Hyperparameters that make each agent small enough to train in a test. Every agent of the suite has a row."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, dict[str, Any]] = {
    "tdmpc2": {
        "enc_dim": 16,
        "mlp_dim": 16,
        "latent_dim": 64,
        "num_channels": 4,
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
    "sac": {"hidden_dim": 16, "batch_size": 8, "image_size": 16, "num_channels": 8, "feature_dim": 8},
    "drqv2": {"hidden_dim": 16, "batch_size": 8, "image_size": 16, "num_channels": 8, "feature_dim": 8},
    "curl": {
        "hidden_dim": 16,
        "batch_size": 8,
        "image_size": 20,
        "crop_size": 16,
        "num_channels": 8,
        "feature_dim": 8,
    },
    "dreamerv3": {
        "deter": 16,
        "hidden": 16,
        "units": 16,
        "stoch": 4,
        "classes": 4,
        "vector_layers": 1,
        "vector_units": 16,
        "cnn_depth": 2,
        "image_size": 16,
        "horizon": 3,
        "batch_size": 4,
        "batch_length": 8,
        "prefill_windows": 8,
    },
    "simbav2": {"actor_dim": 16, "critic_dim": 16, "batch_size": 8, "double_q": True},
}
