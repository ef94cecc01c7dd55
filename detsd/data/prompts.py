"""Training prompts: templates, captions, file names and tags."""

import itertools
import os
from pathlib import Path

import numpy as np

from detsd.concepts.prompts import PromptRewriter
from detsd.config import ConceptsConfig
from detsd.data.captions import file_words, fill_in
from detsd.data.templates import TEMPLATES
from detsd.utils.errors import UserError


def display_name(path: Path) -> str:
    r"""Return a file's name as text; bytes that are not UTF-8, as on old disks, become `\xe9`."""
    return os.fsencode(path.name).decode("utf-8", "backslashreplace")


def prompts_for(
    path: Path, name: str, kind: str, config: ConceptsConfig, caption: str | None = None
) -> list[str]:
    """Return the prompts that image `path` of concept `name` may be trained with."""
    if caption is not None:
        text = fill_in(caption, name, path, config.file_name_split_char)
        # If a caption does not name the concept, the word is put at its beginning.
        return [text if PromptRewriter({name: ""}).words_in(text) else f"{name}, {text}"]
    words = ""
    if config.append_file_name_to_text:  # on_a_beach.jpg -> on a beach
        if display_name(path) != path.name:
            raise UserError(
                f"{path.parent / display_name(path)}: the file name is not UTF-8, but "
                "concepts.append_file_name_to_text needs it; rename the file"
            )
        said = file_words(path.stem, config.file_name_split_char)
        words = f" {said}" if said else ""
    templates = list(TEMPLATES[kind])
    templates += ["{}"] * config.num_blank_prompts + ["a {}"] * config.num_a_prompts
    return [template.format(name) + words for template in templates]


def vary_tags(
    prompt: str, words: PromptRewriter, rng: np.random.Generator, shuffle: bool, drop_out: float
) -> str:
    """Shuffle the comma-separated parts of a prompt, or leave some of them out.

    Parts that contain one of the `words` stay; if the others are shuffled, they come first.
    """
    commas = [k for k, c in enumerate(words.masked(prompt)) if c == ","]  # not those inside a word
    ends = itertools.pairwise([-1, *commas, len(prompt)])
    tags = [prompt[start + 1 : end].strip() for start, end in ends]
    tags = [tag for tag in tags if words.words_in(tag) or rng.random() >= drop_out]
    if shuffle:
        rest = [tag for tag in tags if not words.words_in(tag)]
        tags = [tag for tag in tags if words.words_in(tag)]
        tags += [rest[k] for k in rng.permutation(len(rest))]
    return ", ".join(tags)
