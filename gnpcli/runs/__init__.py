"""What a run leaves: its folder, log, checkpoints and trained weights."""
