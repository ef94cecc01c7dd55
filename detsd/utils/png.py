"""PNG files with the settings that made them, as other tools write and read them."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from detsd.utils.formats import open_picture
from detsd.utils.paths import atomic_write

# The samplers under the names that A1111 and its readers know.
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

CHUNK = "detsd"  # the PNG text chunk that holds the settings as JSON

END = b"\0\0\0\0IEND\xaeB`\x82"  # the last chunk of every PNG file


# ---- settings inside files -----------------------------------------------------------------------


def parameters(record: dict[str, Any]) -> str:
    """Format an image's settings as A1111 writes them into its `parameters` chunk."""
    lines = [record["prompt"]]
    if record["negative_prompt"]:
        lines.append(f"Negative prompt: {record['negative_prompt']}")
    facts = {
        "Steps": record["num_inference_steps"],
        "Sampler": SAMPLERS[record["scheduler_name"]],
        "CFG scale": f"{record['guidance_scale']:g}",
        "Seed": record["seed"],
        "Size": f"{record['width']}x{record['height']}",
        "Model": Path(record["model"]["pretrained_model_name_or_path"]).name,
    }
    if record.get("guidance_interval"):
        facts["Guidance interval"] = "{:g} to {:g}".format(*record["guidance_interval"])
    if record.get("spacing"):
        facts["Timestep spacing"] = record["spacing"]
    if record["concepts"]:
        digests = ", ".join(f"{name}: {c['sha256']}" for name, c in record["concepts"].items())
        facts["TI hashes"] = f'"{digests}"'
    return "\n".join([*lines, ", ".join(f"{key}: {value}" for key, value in facts.items())])


def encode(image: Image.Image, record: dict[str, Any] | None = None) -> bytes:
    """Encode a PNG file with its settings in two text chunks: `parameters`, and JSON under `detsd`.

    Args:
        record: `prompt`, `negative_prompt`, `seed`, `guidance_scale`, `num_inference_steps`,
            `scheduler_name`, `width`, `height`, `model`, `concepts`, and whatever else is JSON.
    """
    info = PngInfo()
    if record:
        info.add_text("parameters", parameters(record))
        info.add_text(CHUNK, json.dumps(record, ensure_ascii=False))
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=info)
    return file.getvalue()


def save(image: Image.Image, path: Path, **options: Any) -> None:
    """Write a picture whole or not at all; its suffix is the format, `options` are Pillow's."""
    with atomic_write(path) as staging:
        image.save(staging, **options)


def read(path: Path) -> Image.Image | None:
    """Read the picture in a file; None where there is no whole one."""
    try:
        with open_picture(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError):  # the last: of a PNG file cut short
        return None


def read_record(path: Path) -> dict[str, Any] | None:
    """Read the settings inside a PNG file of ours; None where it is not whole or has none."""
    try:
        with path.open("rb") as file:
            file.seek(-len(END), os.SEEK_END)
            if file.read() != END:  # cut short
                return None
        with open_picture(path) as image:
            if CHUNK not in image.info:  # where an editor wrote the texts behind the pixels
                image.load()
            record = json.loads(image.info[CHUNK])
    except (OSError, AttributeError, KeyError, ValueError, SyntaxError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
