"""The checkpoints of a training run: which there are, the latest, which to keep, what to clean up."""
