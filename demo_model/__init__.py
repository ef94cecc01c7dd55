"""The bundled Stable Diffusion: weights, the world they saw, the code that made them."""
