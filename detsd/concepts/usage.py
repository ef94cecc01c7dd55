"""The word to write in other tools' prompts, by the layout of the concept file.

Most tools use the file's name. Some need marks around it, without which it has no effect.
"""

import itertools
import re

from detsd.concepts.concept import LearnedConcept, family
from detsd.utils.errors import UserError
from detsd.utils.paths import file_name

PROMPTS = {  # {stem} is the file's name, {token} the word inside the file
    "diffusers": "{token}",
    "OpenVINO (optimum-intel)": "{token}",
    "A1111, Forge, SD.Next": "{stem}",
    "ComfyUI": "embedding:{stem}",
    "SwarmUI": "<embed:{stem}>",
    "InvokeAI": "{bracketed}",
    "stable-diffusion.cpp": "{lower}",
    "detsd": "{word}",
}

BY_NAME = ("A1111, Forge, SD.Next", "ComfyUI", "SwarmUI")

ONE_ENCODER = {  # the tools that read a concept for one text encoder, by layout
    "diffusers": ("diffusers", "OpenVINO (optimum-intel)", *BY_NAME, "stable-diffusion.cpp"),
    "a1111": (*BY_NAME, "InvokeAI", "stable-diffusion.cpp", "diffusers"),
    "kohya": (*BY_NAME, "InvokeAI"),
    "onetrainer": (),
    "detsd": ("detsd",),  # stable-diffusion.cpp would go by the file's name
}

TWO_ENCODERS = {  # and for two text encoders; kohya and OneTrainer then write the layout sdxl
    "diffusers": ("diffusers",),
    "kohya": (*BY_NAME, "InvokeAI"),
    "sdxl": (*BY_NAME, "InvokeAI"),
    "onetrainer": (*BY_NAME, "InvokeAI"),
    "detsd": ("detsd",),
}

READERS = {1: ONE_ENCODER, 2: TWO_ENCODERS}


def token(concept: LearnedConcept) -> str:
    """Return the word to use in diffusers: in lower case if it has several vectors.

    The tokenizer of transformers 5 returns added words in lower case, but diffusers 0.42 looks up
    the other vectors under the original spelling, so all but the first would be lost.
    """
    several = concept.num_vectors > 1
    return concept.name.lower() if several else concept.name


def bracketed(stem: str) -> str:
    """Return the text for InvokeAI, which finds only names of a-z, A-Z, 0-9, ".", "_" and "-"."""
    plain = re.sub(r"[^a-zA-Z0-9._-]+", "_", stem)
    if plain == stem:
        return f"<{stem}>"
    name = plain if re.search("[a-zA-Z0-9]", plain) else "concept"
    return f"<{name}>, after renaming it to {name} there"


def prompts(concept: LearnedConcept, layout: str) -> dict[str, str]:
    """Return the prompt text for each tool that reads a layout."""
    stem = file_name(concept.name)
    names = {
        "stem": stem, "lower": stem.lower(), "token": token(concept), "word": concept.name,
        "bracketed": bracketed(stem),
    }  # fmt: skip
    return {
        tool: PROMPTS[tool].format(**names) for tool in READERS[len(concept.embeddings)][layout]
    }


def layout_for(concept: LearnedConcept, tool: str) -> str:
    """Return the layout in which a tool reads a concept."""
    for layout, tools in READERS[len(concept.embeddings)].items():
        if tool in tools:
            return layout
    raise UserError(
        f"{tool} does not support concepts for {family(concept.widths)}; choose another tool"
    )


def begins_another(concepts: list[LearnedConcept]) -> tuple[str, str] | None:
    """Return two words that diffusers confuses, because the second begins with the first."""
    words = sorted(map(token, concepts))
    return next(((a, b) for a, b in itertools.pairwise(words) if b.startswith(a)), None)
