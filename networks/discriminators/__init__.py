"""Discriminators: projected ones on frozen features, a three-scale PatchGAN, and one in the manner of StyleGAN2."""
