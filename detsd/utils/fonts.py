"""Fonts that have the letters of users' words, for contact sheets and plots."""

import contextlib
import functools
import logging
import warnings
from collections.abc import Iterator, Set
from pathlib import Path

from PIL import ImageFont

logger = logging.getLogger("detsd")

_warned: set[str] = set()  # characters that no font has, already warned of


def font(size: int, text: str = "") -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans, or another font that has all of a text's characters."""
    missing = _missing(text)
    file = _file(_needed(text)) if missing else _dejavu()
    if not file:
        _warn(missing)
    return ImageFont.truetype(file or _dejavu(), size)


@contextlib.contextmanager
def as_written(words: str) -> Iterator[None]:
    """Make matplotlib draw words as they are written, in the figures built and saved meanwhile.

    A `$` starts no formula, and letters that DejaVu Sans lacks come from other installed fonts.

    Args:
        words: all that may appear in the figures.
    """
    import matplotlib
    from matplotlib.font_manager import fontManager
    from matplotlib.ft2font import FT2Font

    files = {letter: _file(frozenset(letter)) for letter in sorted(_missing(words))}
    _warn({letter for letter, file in files.items() if not file})
    families = ["DejaVu Sans"]
    for file in dict.fromkeys(filter(None, files.values())):
        fontManager.addfont(file)
        families.append(FT2Font(file).family_name)
    settings = {"text.parse_math": False, "font.family": families}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # warned of above, once
        yield


def _needed(text: str) -> frozenset[str]:
    """Return the characters of a text that a font must have."""
    return frozenset(c for c in text if c.isprintable() and not c.isspace())


@functools.cache
def _dejavu() -> str:
    """Return the file of DejaVu Sans, which comes with matplotlib."""
    import matplotlib  # late: most importers of this module draw no labels

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


def _missing(text: str) -> frozenset[str]:
    """Return the characters of a text that DejaVu Sans lacks."""
    return _needed(text) - _characters(_dejavu())


@functools.cache
def _installed() -> list[str]:
    """Return the files of the installed fonts, upright ones without serifs first."""
    from matplotlib.font_manager import findSystemFonts  # late: it looks through many folders

    upright = ("sans", "regular")  # rather than serifs, bold or slanted faces
    return sorted(findSystemFonts(), key=lambda f: [w not in f.lower() for w in upright] + [f])


@functools.cache
def _file(needed: frozenset[str]) -> str | None:
    """Return an installed font that has the characters; None if no font has them all."""
    return next((file for file in _installed() if needed <= _characters(file)), None)


def _warn(missing: Set[str]) -> None:
    """Warn, once, of characters that no font has."""
    if missing - _warned:
        _warned.update(missing)
        logger.warning(
            "no installed font has %s, so labels show boxes instead; install one that has, such "
            "as Noto Sans CJK",
            " ".join(sorted(missing)[:10]),
        )


@functools.cache
def _characters(file: str) -> frozenset[str]:
    """Return the characters that a font file has."""
    from matplotlib.ft2font import FT2Font

    try:
        ImageFont.truetype(file, 14)  # bitmap fonts, as for emoji, cannot be used
        return frozenset(map(chr, FT2Font(file).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()
