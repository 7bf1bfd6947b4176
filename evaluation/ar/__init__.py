"""Sampling of autoregressive models."""
