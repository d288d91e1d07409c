"""Weights on disk: checkpoints that a model loads."""
