"""Sampling of diffusion models: integrators, guidance, and the folders of samples that the decode tools read."""
