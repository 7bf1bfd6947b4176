"""Networks compute tensors: encoders, bottleneck, decoder. Import what you need from the modules."""
