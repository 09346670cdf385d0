"""From run directories to tables, statistics, figures and reports. Imports no torch, agent or simulator."""
