"""Batches for a step: from memory, or streamed from files."""
