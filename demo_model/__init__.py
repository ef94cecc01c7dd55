"""The bundled Stable Diffusion: its weights, its training world, and the code that made them."""
