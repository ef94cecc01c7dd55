"""Textual Inversion for Stable Diffusion, on a Determined cluster and on a laptop."""

import getpass
import os
import tempfile
import warnings

__version__ = "0.1.0"

# Before the libraries are imported, on the command line and in notebooks alike: their notes on
# optional packages say nothing to somebody who trains a concept.
for name, value in {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}.items():
    os.environ.setdefault(name, value)
if "OMP_WAIT_POLICY" not in os.environ:
    # GNU OpenMP's threads spin 300,000 times while they wait for each other. Beside other work they
    # so wait for what cannot run because they spin: two trainings on two cores made a tenth.
    os.environ.setdefault("GOMP_SPINCOUNT", "700")
# A container may run a user who has no home and no entry in its list; the libraries ask for both.
if not os.path.isabs(os.path.expanduser("~")):
    os.environ["HOME"] = tempfile.gettempdir()
try:
    getpass.getuser()
except (KeyError, OSError):
    os.environ["USER"] = f"uid-{os.getuid()}"
warnings.filterwarnings("ignore", "IProgress not found")  # of tqdm, in a notebook without widgets
