"""Baseline agents on the same protocol as TD-MPC2."""
