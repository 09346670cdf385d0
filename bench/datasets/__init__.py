"""Multi-task data sets: the authors' chunk files, a layout on disk to draw from, and how both are made."""
