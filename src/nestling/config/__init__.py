"""Settings of a study, the names that they may hold, and the paths of a run."""
