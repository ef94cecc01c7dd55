"""Example prompts of the page."""

from __future__ import annotations

EXAMPLES = (
    "a photo of a {} on a white background",
    "a watercolor painting of a {} on a night sky",
    "an oil painting of a {} on ocean waves",
    "a neon picture of a {} on a brick wall",
)

STYLE_EXAMPLES = (
    "a cat in the style of {}",
    "a red star in the style of {}",
    "a house on a night sky in the style of {}",
    "a tree on a white background in the style of {}",
)
