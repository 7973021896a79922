"""The training loop and evaluation: all side effects of a run."""
