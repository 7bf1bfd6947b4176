"""Folders of samples of any network that generates latents or tokens, and the command line of their tools."""
