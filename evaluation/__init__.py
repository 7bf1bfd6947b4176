"""Evaluation: what the tools call to reconstruct images and to measure them."""
