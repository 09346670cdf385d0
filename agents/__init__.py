"""The agent protocol and TD-MPC2."""
