"""Hyperparameters of the baselines, one file each. Light on purpose: a sweep is checked without loading torch."""
