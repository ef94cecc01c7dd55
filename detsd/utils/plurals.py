"""Numbers with their nouns, for texts that people read."""


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: "1 step", "2 steps"."""
    return f"{count} {noun}{'s' * (count != 1)}"
