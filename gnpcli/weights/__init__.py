"""Weights from elsewhere: reading files of tensors, fitting them to a model, starting a run."""
