"""PNG files with the settings that made them, as other tools write and read them."""

import io
import json
import os
import re
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from detsd.utils.formats import open_picture
from detsd.utils.paths import atomic_write

# The samplers by the names that A1111 and its readers use.
SAMPLERS = {
    "ddim": "DDIM",
    "pndm": "PLMS",
    "lms-discrete": "LMS",
    "euler": "Euler",
    "euler-ancestral": "Euler a",
    "dpmsolver++": "DPM++ 2M",
    "dpmsolver++-karras": "DPM++ 2M Karras",
    "dpmsolver++-sde": "DPM++ 2M SDE",
    "dpmsolver++-sde-karras": "DPM++ 2M SDE Karras",
    "unipc": "UniPC",
    "heun": "Heun",
    "lcm": "LCM",
}

# A1111's schedules, by the spacing of the timesteps here.
SCHEDULES = {"leading": "DDIM", "trailing": "Simple", "linspace": "Uniform"}

CHUNK = "detsd"  # the PNG text chunk that holds the settings as JSON
END = b"\0\0\0\0IEND\xaeB`\x82"  # the last chunk of every PNG file
MAX_RECORD = 2**20  # characters; the settings of an image have a thousand

# The keys that `parameters` and all readers rely on; older files lack other keys.
KINDS = {
    "prompt": str, "negative_prompt": str, "seed": int, "guidance_scale": int | float,
    "num_inference_steps": int, "scheduler_name": str, "width": int, "height": int,
    "model": dict, "concepts": dict,
}  # fmt: skip


def noise_fields(scheduler_name: str, spacing: str) -> dict[str, Any]:
    """Return the fields that give A1111 a sampler's noise levels.

    Sources: A1111 1.10, `modules/sd_schedulers.py` and `KDiffusionSampler.get_sigmas`; the
    `set_timesteps` and `init_noise_sigma` of diffusers' samplers.
    """
    if scheduler_name in ("ddim", "pndm", "unipc", "lcm"):  # these have their own timesteps
        return {}
    solver = scheduler_name.startswith("dpmsolver++")
    if scheduler_name.endswith("-karras"):
        fields: dict[str, Any] = {"Schedule type": "Karras"}
    elif solver and spacing == "linspace":
        fields = {"Schedule type": "SGM Uniform"}
    else:
        fields = {"Schedule type": SCHEDULES[spacing]}
    if solver or spacing == "leading":  # begins with noise that has the variance of a noisy image
        fields["SGM noise multiplier"] = True
    if solver and fields["Schedule type"] == "DDIM":  # which omits the smallest level
        fields["Discard penultimate sigma"] = True
    return fields


def quote(value: Any) -> str:
    """Return a value as A1111 writes it: in quotation marks if it would end or split a field."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:\n"]', text) else text


def parameters(record: dict[str, Any], a1111: dict[str, Any] | None = None) -> str:
    """Format an image's settings as A1111 writes them into its `parameters` chunk.

    Args:
        a1111: additional fields, as `detsd.sampling.a1111.a1111_fields` returns them.
    """
    a1111 = a1111 or {}
    lines = [record["prompt"]]
    if record["negative_prompt"]:
        lines.append(f"Negative prompt: {record['negative_prompt']}")
    name = record["model"]["pretrained_model_name_or_path"]
    facts = {
        "Steps": record["num_inference_steps"],
        "Sampler": SAMPLERS[record["scheduler_name"]],
        "Schedule type": a1111.get("Schedule type"),
        "CFG scale": f"{record['guidance_scale']:g}",
        "Seed": record["seed"],
        "Size": f"{record['width']}x{record['height']}",
        "Model hash": a1111.get("Model hash"),
        "Model": re.sub(r"\.(safetensors|ckpt)$", "", os.path.basename(os.path.abspath(name))),
        "RNG": "CPU",  # without it A1111 draws its noise on the GPU
    }
    if record.get("prompt_weights") is False:
        facts["Emphasis"] = "None"
    if record.get("guidance_interval"):
        facts["Guidance interval"] = "{:g} to {:g}".format(*record["guidance_interval"])
    if record.get("spacing"):
        facts["Timestep spacing"] = record["spacing"]
    given = [(key, value) for key, value in (facts | a1111).items() if value not in (None, "")]
    return "\n".join([*lines, ", ".join(f"{key}: {quote(value)}" for key, value in given)])


def encode(
    image: Image.Image, record: dict[str, Any] | None = None, a1111: dict[str, Any] | None = None
) -> bytes:
    """Encode a PNG file with its settings in two text chunks: `parameters`, and JSON under `detsd`.

    Args:
        record: `prompt`, `negative_prompt`, `seed`, `guidance_scale`, `num_inference_steps`,
            `scheduler_name`, `width`, `height`, `model`, `concepts`, and whatever else is JSON.
        a1111: additional fields of `parameters`.
    """
    texts = {}
    if record:
        texts["parameters"] = parameters(record, a1111)
        texts[CHUNK] = json.dumps(record, ensure_ascii=False)
    return encode_texts(image, texts)


def encode_texts(image: Image.Image, texts: dict[str, str]) -> bytes:
    """Encode a PNG file with each text in its own chunk."""
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=info)
    return file.getvalue()


def save(image: Image.Image, path: Path, **options: Any) -> None:
    """Write a picture whole or not at all; its suffix is the format, `options` are Pillow's."""
    with atomic_write(path) as staging:
        image.save(staging, **options)


def read(path: Path) -> Image.Image | None:
    """Read the picture in a file; None if there is no complete one."""
    try:
        with open_picture(path) as image:
            return image.convert("RGB")
    except Exception:  # broken files raise a dozen classes
        return None


def read_record(path: Path, checked: bool = True) -> Any:
    """Read the settings inside a PNG file of ours; None if it is truncated or has none.

    The checksums of all its parts are compared, which takes a millisecond.

    Args:
        checked: whether settings with a missing key, or one of another type, are refused.
    """
    try:
        with path.open("rb") as file:
            file.seek(-len(END), os.SEEK_END)
            if file.read() != END:  # cut short
                return None
        with open_picture(path) as image:
            if CHUNK not in image.info:  # an editor may write the texts after the pixels
                image.load()
            text = image.info[CHUNK]
        with open_picture(path) as image:
            image.verify()
        record = json.loads(text) if len(text) <= MAX_RECORD else None
        return record if is_record(record) or not checked else None
    except Exception:  # broken files raise a dozen classes
        return None


def is_record(record: Any) -> bool:
    """Return whether a file's content is the settings of an image."""
    if not isinstance(record, dict):
        return False
    if not all(isinstance(record.get(key), kind) for key, kind in KINDS.items()):
        return False
    model, concepts = record["model"], record["concepts"].values()
    try:
        parameters(record)
    except (TypeError, ValueError, KeyError, IndexError, OverflowError):
        return False
    return (
        isinstance(model.get("pretrained_model_name_or_path"), str)
        and all(isinstance(model.get(key), str | None) for key in ("revision", "vae"))
        and all(
            isinstance(concept, dict) and isinstance(concept.get(key), str)
            for concept in concepts
            for key in ("source", "sha256")
        )
    )
