"""Settings that A1111 and ComfyUI put into their images, as far as they can be used here.

A1111 writes a text: the prompt, the negative prompt, and a line of fields. For ComfyUI's graph see
`detsd.utils.comfy`. Neither is trusted.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from detsd.utils.comfy import Graph
from detsd.utils.errors import UserError, printable
from detsd.utils.formats import open_picture
from detsd.utils.png import CHUNK, SAMPLERS, noise_fields

SPACINGS = {
    "": "linspace", "automatic": "linspace", "uniform": "linspace", "normal": "linspace",
    "simple": "trailing", "sgm uniform": "trailing", "ddim": "leading", "ddim uniform": "leading",
}  # fmt: skip
SCHEDULES = (*SPACINGS, "karras", "exponential", "polyexponential", "beta", "kl optimal")

# A concept in ComfyUI's prompts, with or without its file's extension.
EMBEDDING = re.compile(r"embedding:([^\s,:()]+?)(?:\.(?:pt|bin|safetensors))?(?=[\s,:()]|$)")

# Samplers that draw other noise between steps or differ otherwise; in ComfyUI also euler-ancestral.
UNLIKE = ("pndm", "dpmsolver++-sde", "dpmsolver++-sde-karras", "unipc", "lcm")

MAX_PROMPT = 10_000  # characters

HONOURED = {
    "Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Model", "Model hash", "RNG",
    "Version", "TI hashes", "SGM noise multiplier", "Discard penultimate sigma", "Batch size",
    "Batch pos", "User", "Timestep spacing", "Guidance interval", "Lora hashes", "Emphasis",
    "Noise Schedule", "Clip skip", "VAE", "VAE hash",
}  # fmt: skip
TOPICS = {  # prefixes of A1111's fields, and what they stand for
    "Hires": "hires fix", "First pass": "hires fix", "Denoising": "an initial image",
    "Init image": "an initial image", "Mask": "inpainting", "Inpaint": "inpainting",
    "Variation": "a variation seed",
    "Seed resize": "a seed for another size", "ENSD": "another seed for the noise between steps",
    "Eta": "another amount of noise between steps", "Refiner": "a refiner",
    "ControlNet": "ControlNet",
    "ADetailer": "ADetailer", "Face restoration": "face restoration", "Hypernet": "a hypernetwork",
    "Tiling": "tiling",
}  # fmt: skip


@dataclass
class ForeignSettings:
    """The settings of another tool's image."""

    tool: str  # its name
    grid: dict[str, Any] = field(default_factory=dict)  # as a configuration's section `grid`
    model: str = ""  # the checkpoint's name; "" if unknown
    clip_skip: int = 0  # layers that the text encoder left out, as diffusers counts
    notes: list[str] = field(
        default_factory=list
    )  # what cannot be reproduced, half a sentence each

    def note(self, text: str) -> None:
        """Add a note, once."""
        text = printable(text)
        if text not in self.notes:
            self.notes.append(text)

    def number(self, key: str, value: Any, kind: type, name: str) -> None:
        """Keep a number under a key of `grid`; note a value that is no number."""
        try:
            if value is None or isinstance(value, bool):
                raise ValueError
            self.grid[key] = kind(value)
        except (ValueError, TypeError, OverflowError):
            self.note(f"it names no {name}; the default is used")

    def prompts(self, prompt: str, negative: str) -> None:
        """Keep the prompts; `detsd.concepts.prompts` warns of what is not read in them."""
        if max(len(prompt), len(negative)) > MAX_PROMPT:
            self.note(
                f"its prompt is cut after {MAX_PROMPT:,} characters; the model reads even less"
            )
            prompt, negative = prompt[:MAX_PROMPT], negative[:MAX_PROMPT]
        self.concepts([m[1] for m in EMBEDDING.finditer(f"{prompt} {negative}")])
        for key, value in (("prompts", prompt), ("negative_prompts", negative)):
            self.grid[key] = EMBEDDING.sub(r"\1", value).strip()

    def concepts(self, words: list[str]) -> None:
        """Note the words of the prompt that stand for files."""
        if words:
            names = ", ".join(dict.fromkeys(words))
            self.note(f"its prompt uses the concepts {names}; name their files in concepts.files")

    def seed(self, value: Any) -> None:
        """Keep a seed, of which PyTorch's CPU generator uses only 32 bits."""
        self.number("seeds", value, int, "seed")
        if "seeds" in self.grid:
            self.grid["seeds"] %= 2**32

    def sampler(self, sampler: Any, schedule: Any, known: dict[str, str]) -> str:
        """Keep a sampler with a schedule; return our name for it, "" if it is unknown."""
        words = str(sampler or "").strip().lower()
        kind = str(schedule or "").strip().lower().replace("_", " ")
        for suffix in SCHEDULES[1:]:
            if words not in known and words.endswith(f" {suffix}"):
                words, kind = words.removesuffix(f" {suffix}"), suffix
        name = known.get(words, "")
        if not name:
            self.note(f"its sampler {str(sampler)[:100]!r} is not supported; ddim is used")
            return ""
        if kind == "karras" and name.startswith("dpmsolver++"):
            name += "-karras"
        elif name not in ("pndm", "lcm", "unipc"):
            if kind not in SPACINGS:
                self.note(f"its schedule {str(schedule)[:100]!r} is not supported with {name}")
            self.grid["spacing"] = SPACINGS.get(kind, "linspace")
            if kind == "sgm uniform" and name.startswith("dpmsolver++"):
                self.grid["spacing"] = "linspace"
        if name in UNLIKE or (self.tool == "ComfyUI" and name == "euler-ancestral"):
            self.note(
                f"{name} here differs from {sampler} there; expect a similar but different image"
            )
        self.grid["scheduler_names"] = name
        return name

    def check_levels(self, name: str) -> None:
        """Note if a sampler has the other tool's noise levels only at other numbers of steps."""
        steps, spacing = self.grid.get("num_inference_steps", 0), self.grid.get("spacing")
        count = steps + (self.tool == "A1111" and name == "dpmsolver++")
        if self.tool == "ComfyUI" and name in ("euler", "heun", "lms-discrete"):
            self.note(
                "its first noise is up to 0.5 % larger or smaller; expect nearly the same image"
            )
        if spacing == "leading" and count and 1000 % count:
            self.note(f"with {steps} steps the noise levels differ somewhat from {self.tool}'s")


def read_foreign(path: Path) -> ForeignSettings | None:
    """Read the settings of A1111 or ComfyUI inside an image; None if it has none.

    PNG files hold them in text chunks, JPEG, WebP and AVIF files in the EXIF data.
    """
    try:
        with open_picture(path) as image:
            texts = _texts(image)
            if not texts:  # an editor may write them after the pixels
                image.load()
                texts = _texts(image)
    except Exception:  # whatever Pillow raises for a damaged file
        return None
    if CHUNK in texts:
        raise UserError(f"{path} holds settings of detsd, but is damaged; use an intact copy")
    try:
        graph = json.loads(texts.get("prompt", ""))
    except (ValueError, RecursionError):  # not JSON, or nested without end
        graph = None
    if isinstance(graph, dict):
        return Graph(path, graph, ForeignSettings("ComfyUI")).settings()
    if "parameters" in texts:
        return _a1111(path, texts["parameters"])
    if "prompt" in texts:
        raise UserError(f"{path} holds a text under 'prompt' that is not a ComfyUI graph")
    return None


def _texts(image: Image.Image) -> dict[str, str]:
    """Return the texts inside an image, under the names of PNG's chunks."""
    found = {key: text for key, text in image.info.items() if isinstance(text, str)}
    exif = image.getexif()
    for tag in (ExifTags.Base.Make, ExifTags.Base.Model):  # ComfyUI's WebP files
        key, colon, text = str(exif.get(tag, "")).partition(":")
        if colon and key == "prompt":
            found.setdefault(key, text.rstrip("\0"))
    comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    if isinstance(comment, bytes) and comment.startswith(b"UNICODE\0"):
        comment = comment[8:]
        big = comment[::2].count(0) >= comment[1::2].count(0)  # the text is mostly Latin
        found.setdefault(
            "parameters", comment.decode("utf-16-be" if big else "utf-16-le", "replace")
        )
    elif comment:
        text = comment.decode("utf-8", "replace") if isinstance(comment, bytes) else str(comment)
        found.setdefault("parameters", text.removeprefix("ASCII\0\0\0"))
    return found


# ---- A1111 -------------------------------------------------------------------------------------


# A field of A1111's line; its value may be a JSON text, in which commas and colons do not count.
FIELD = re.compile(r'(?:^|,)([^:,]*):\s*("(?:\\.|[^"\\])*"|[^,]*)')


def fields(line: str) -> dict[str, str]:
    """Split A1111's line of `key: value`; a word without a colon is left out."""
    found = {}
    for key, value in FIELD.findall(line):
        try:
            found[key.strip()] = json.loads(value) if value.startswith('"') else value.strip()
        except ValueError:  # quotation marks, but no JSON
            found[key.strip()] = value.strip()
    return found


def _a1111(path: Path, text: str) -> ForeignSettings:
    """Return the settings of A1111's text."""
    *lines, last = text.strip().split("\n")
    given = fields(last)
    if not {"Steps", "Seed", "Sampler"} & given.keys() or len(given) < 3:
        raise UserError(f"{path} holds a text under 'parameters' that is not A1111's settings")
    start = next((k for k, x in enumerate(lines) if x.startswith("Negative prompt:")), len(lines))
    negative = "\n".join(lines[start:]).removeprefix("Negative prompt:")
    found = ForeignSettings("A1111", model=given.get("Model", given.get("Model hash", "")))
    found.prompts("\n".join(lines[:start]), negative)
    known = {o.lower(): name for name, o in SAMPLERS.items() if not name.endswith("-karras")}
    name = found.sampler(given.get("Sampler"), given.get("Schedule type"), known)
    found.number("num_inference_steps", given.get("Steps"), int, "number of steps")
    found.number("guidance_scales", given.get("CFG scale"), float, "CFG scale")
    found.seed(given.get("Seed"))
    width, _, height = given.get("Size", "").partition("x")
    found.number("width", width, int, "width")
    found.number("height", height, int, "height")
    if name in ("ddim", "pndm"):  # have only one schedule there
        found.grid["spacing"] = "leading"
    if given.get("Timestep spacing") in SPACINGS.values():  # our own field
        found.grid["spacing"] = given["Timestep spacing"]
    interval = given.get("Guidance interval", "")
    if re.fullmatch(r"\d(\.\d+)? to \d(\.\d+)?", interval):  # our own field, too
        found.grid["guidance_interval"] = [float(part) for part in interval.split(" to ")]
    if given.get("Emphasis") == "None":
        found.grid["prompt_weights"] = False
    if given.get("RNG") != "CPU":
        found.note("its noise was drawn on a GPU (it does not say RNG: CPU); expect another image")
    found.check_levels(name)
    wanted = noise_fields(name, found.grid.get("spacing", "leading")) if name else {}
    for key in ("SGM noise multiplier", "Discard penultimate sigma"):
        if name and name not in UNLIKE and (given.get(key) == "True") != (key in wanted):
            found.note(f"its noise levels differ slightly from those here ({key})")
    if "Lora hashes" in given:
        found.note("LoRA is not supported; it is left out")
    found.concepts([word.strip() for word in fields(given.get("TI hashes", ""))])
    if re.fullmatch(r"\d{1,2}", given.get("Clip skip", "")):
        found.clip_skip = max(0, int(given["Clip skip"]) - 1)
    if found.clip_skip:
        found.note(
            "with Stable Diffusion XL add --set model.clip_skip=0, since A1111 skips nothing there"
        )
    if vae := given.get("VAE", given.get("VAE hash")):
        found.note(f"its VAE was {vae[:100]}; name the file in model.vae")
    if any(key.startswith("Hires") for key in given):
        given.pop("Denoising strength", None)  # of its second pass
    for key in given.keys() - HONOURED:
        topics = (what for start, what in TOPICS.items() if key.startswith(start))
        found.note(f"{next(topics, repr(key[:100]))} is not supported; it is left out")
    found.notes.sort()
    return found
