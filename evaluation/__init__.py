"""What the tools call: reconstruction of folders, image metrics, baselines."""
