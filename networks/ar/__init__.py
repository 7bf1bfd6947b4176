"""Class-conditional autoregressive models of the tokens of a discrete tokenizer. Import what you need from the modules.

config     configuration and named sizes; imports no torch
rope       rotary positions of a grid behind a class token
gpt        the network
sampling   tokens drawn one after the other, with a key-value cache
loading    reading the reference's checkpoints
folder     reading this project's
"""
