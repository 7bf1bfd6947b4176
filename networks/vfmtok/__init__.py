"""VFMTok (arXiv 2507.08441): region tokens of a frozen vision foundation model, quantised; import from the modules."""
