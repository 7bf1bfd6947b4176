"""Discriminators: a StyleGAN-T projected discriminator on frozen features, and a three-scale PatchGAN."""
