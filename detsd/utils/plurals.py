"""Numbers with their nouns and verbs, for texts that people read."""

SINGULAR = {"are": "is", "have": "has", "lose": "loses", "exist": "exists", "were": "was"}


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: "1 step", "2 steps", "2 processes"."""
    ending = "es" if noun.endswith("s") else "s"
    return f"{count} {noun}{ending * (count != 1)}"


def verb(plural: str, count: int) -> str:
    """Return a verb as its number wants it: "1 of 5 pictures is", "2 of 5 pictures are"."""
    return SINGULAR[plural] if count == 1 else plural
