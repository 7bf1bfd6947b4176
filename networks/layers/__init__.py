"""Layers that the networks are built of, one kind per file."""
