"""Textual Inversion for Stable Diffusion, on a Determined cluster and on a laptop."""
