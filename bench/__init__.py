"""What a run is: tasks, environments, replay, training, evaluation, run directories and the command line."""
