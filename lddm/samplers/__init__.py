"""Ways to draw from models with a latent, one a file."""
