"""Textual Inversion for Stable Diffusion, on a Determined cluster and on a laptop."""

import os
import warnings

# Before the libraries are imported, on the command line and in notebooks alike: their notes on
# optional packages say nothing to somebody who trains a concept.
for name, value in {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}.items():
    os.environ.setdefault(name, value)
warnings.filterwarnings("ignore", "IProgress not found")  # of tqdm, in a notebook without widgets
