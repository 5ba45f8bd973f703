"""How good a model is, at which effort, beside which other: tasks, runs and reports."""
