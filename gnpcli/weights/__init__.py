"""Weights that training did not make: files of tensors, fitting them to a model, and where a run
starts from.
"""
