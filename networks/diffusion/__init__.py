"""Diffusion transformers on the latents of a tokenizer. Import what you need from the modules.

config        configurations and named sizes; imports no torch
embeddings    patches, positions, times, labels
blocks        normalisation, attention, feed-forward and the adaLN-Zero block
transformer   what both networks share
lightningdit  LightningDiT
reg_sit       SiT with the class token of REG
guidance      classifier-free guidance
loading       reading the reference's checkpoints
folder        reading this project's
building      networks by their configuration, and whole ones from checkpoints

One convention of time holds for everything that asks for a velocity: t = 0 is data, t = 1 is noise,
x_t = (1 - t) data + t noise, and the velocity is dx/dt = noise - data. LightningDiT's weights know the opposite one;
`LightningDiT.velocity` is the only place that translates.
"""
