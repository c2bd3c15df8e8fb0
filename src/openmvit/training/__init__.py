"""Training: recipe, optimiser, tasks and run. The only folder that knows the training engine."""
