"""Sweeps: specification, planning, launching and status."""
