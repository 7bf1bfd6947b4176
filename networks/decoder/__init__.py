"""The decoder: latent -> expansion -> style w and latent branches -> progressive synthesis -> images."""
