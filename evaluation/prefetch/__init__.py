"""Latents, or other features, of all images of a data set, computed once and written to files."""
