"""DreamerV3 (Hafner et al. 2023) in both of its generations."""
