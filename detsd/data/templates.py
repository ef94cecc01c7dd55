"""Prompt templates for training and evaluation; `{}` stands for the concept.

The training templates are from the textual inversion paper (arXiv 2208.01618, appendix), which took
them from CLIP's ImageNet templates (https://github.com/openai/CLIP). The evaluation templates are
of the paper's kinds (other backgrounds, styles, things beside the concept), in words that the
bundled model also knows. `dreambooth` is DreamBooth's list for objects (arXiv 2208.12242) from
google/dreambooth, where a class name follows the concept.
"""

import json
from pathlib import Path

_LISTS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))

TEMPLATES: dict[str, list[str]] = _LISTS["templates"]  # by learnable property
EDITS: dict[str, list[str]] = _LISTS["edits"]
PLAIN: dict[str, str] = _LISTS["plain"]
