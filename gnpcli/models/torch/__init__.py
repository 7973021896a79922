"""State dicts of PyTorch: their names, their layout, and what is known of published weights."""
