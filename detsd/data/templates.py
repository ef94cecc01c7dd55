"""Prompt templates of the training and of the evaluation; `{}` is where the concept goes.

Those of the training are from the paper of textual inversion (arXiv 2208.01618, appendix), which
took them from CLIP's ImageNet templates (https://github.com/openai/CLIP). Those of the evaluation
are of its kinds: other grounds, styles, things beside the concept, in words that the bundled model
knows, too. `dreambooth` is the list for objects of DreamBooth (arXiv 2208.12242) from
google/dreambooth, where a class's name stands behind the concept.
"""

import json
from pathlib import Path

_LISTS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))

TEMPLATES: dict[str, list[str]] = _LISTS["templates"]  # by learnable property
EDITS: dict[str, list[str]] = _LISTS["edits"]
PLAIN: dict[str, str] = _LISTS["plain"]
