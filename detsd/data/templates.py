"""Prompt templates, immutable: those of the training, and those that a concept is judged by.

`{}` is where the concept goes. The lists of the training are those that the paper of textual
inversion (arXiv 2208.01618, appendix) took from CLIP's ImageNet templates
(https://github.com/openai/CLIP). Those of the judging are of its kinds, other grounds, styles and
things beside the concept, in words that the bundled model knows, too.
"""

OBJECT_TEMPLATES = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of a {}",
    "a photo of a nice {}",
    "a good photo of a {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
)

STYLE_TEMPLATES = (
    "a painting in the style of {}",
    "a rendering in the style of {}",
    "a cropped painting in the style of {}",
    "the painting in the style of {}",
    "a clean painting in the style of {}",
    "a dirty painting in the style of {}",
    "a dark painting in the style of {}",
    "a picture in the style of {}",
    "a cool painting in the style of {}",
    "a close-up painting in the style of {}",
    "a bright painting in the style of {}",
    "a good painting in the style of {}",
    "one painting in the style of {}",
    "a nice painting in the style of {}",
    "a small painting in the style of {}",
    "a weird painting in the style of {}",
    "a large painting in the style of {}",
)

TEMPLATES = {"object": OBJECT_TEMPLATES, "style": STYLE_TEMPLATES}

OBJECT_EDITS = (
    "a photo of a {} on the grass",
    "a photo of a {} on ocean waves",
    "a photo of a {} on a brick wall",
    "a photo of a {} on a night sky",
    "a photo of a {} on blue stripes",
    "a watercolor painting of a {}",
    "an oil painting of a {}",
    "an ink doodle of a {}",
    "a neon sign of a {}",
    "pixel art of a {}",
    "a photo of a {} above a red square",
    "a photo of a {} inside a blue ring",
    "a photo of a {} to the left of a yellow house",
    "a photo of a black cat to the left of a {}",
    "a photo of a white moon above a {}",
)

STYLE_EDITS = (
    "a cat in the style of {}",
    "a house on the grass in the style of {}",
    "a boat on ocean waves in the style of {}",
    "a white moon on a night sky in the style of {}",
    "a red heart above a yellow square in the style of {}",
    "a blue fish in the style of {}",
    "a tree in the style of {}",
    "a black cat to the left of a pink flower in the style of {}",
)

# The prompts for objects of DreamBooth (arXiv 2208.12242), from google/dreambooth, where a class's
# name stands behind the concept.
DREAMBOOTH_EDITS = (
    *(
        f"a {{}} {where}"
        for where in (
            "in the jungle",
            "in the snow",
            "on the beach",
            "on a cobblestone street",
            "on top of pink fabric",
            "on top of a wooden floor",
            "with a city in the background",
            "with a mountain in the background",
            "with a blue house in the background",
            "on top of a purple rug in a forest",
            "with a wheat field in the background",
            "with a tree and autumn leaves in the background",
            "with the Eiffel Tower in the background",
            "floating on top of water",
            "floating in an ocean of milk",
            "on top of green grass with sunflowers around it",
            "on top of a mirror",
            "on top of the sidewalk in a crowded street",
            "on top of a dirt road",
            "on top of a white rug",
        )
    ),
    *(f"a {how} {{}}" for how in ("red", "purple", "shiny", "wet", "cube shaped")),
)

EDITS = {"object": OBJECT_EDITS, "style": STYLE_EDITS, "dreambooth": DREAMBOOTH_EDITS}

PLAIN = {"object": "a photo of a {}", "style": "a painting in the style of {}"}
