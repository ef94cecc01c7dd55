"""Textual Inversion for Stable Diffusion, on a Determined cluster and on a laptop."""

import getpass
import os
import tempfile
import warnings

__version__ = "0.1.0"

# Set before the libraries are imported, because they read these variables at import. Their notes on
# optional packages do not matter for training a concept.
for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
    os.environ.setdefault(name, "error")
if "OMP_WAIT_POLICY" not in os.environ:
    # GNU OpenMP's threads spin 300,000 times while they wait for each other. Spinning threads
    # starve the threads they wait for: two runs on two cores had a tenth of their throughput.
    os.environ.setdefault("GOMP_SPINCOUNT", "700")
# A container's user may lack a home folder and a passwd entry; the libraries need both.
if not os.path.isabs(os.path.expanduser("~")):
    os.environ["HOME"] = tempfile.gettempdir()
try:
    getpass.getuser()
except (KeyError, OSError):
    os.environ["USER"] = f"uid-{os.getuid()}"
warnings.filterwarnings("ignore", "IProgress not found")  # from tqdm, in a notebook without widgets
