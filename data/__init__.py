"""Data: sources -> order -> decode -> augment -> batches. Import what you need from the modules."""
