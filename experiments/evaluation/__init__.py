"""Evaluation of checkpoints on sets of shots."""
