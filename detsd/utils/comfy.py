"""The graph that ComfyUI puts into its images: nodes by their ids, with a class and inputs.

Inputs are values, or links `[id, output]` to other nodes. Nothing in it is trusted: values of wrong
types, missing nodes and cycles of links count as unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detsd.utils.errors import UserError

if TYPE_CHECKING:
    from detsd.utils.foreign import ForeignSettings

COMFY_SAMPLERS = {
    "ddim": "euler",  # the same method on its noise levels
    "lms": "lms-discrete",
    "euler": "euler",
    "euler_ancestral": "euler-ancestral",
    "dpmpp_2m": "dpmsolver++",
    "dpmpp_2m_sde": "dpmsolver++-sde",
    "dpmpp_2m_sde_gpu": "dpmsolver++-sde",
    "uni_pc": "unipc",
    "uni_pc_bh2": "unipc",
    "heun": "heun",
    "lcm": "lcm",
}

KNOWN_NODES = {
    "KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced", "KSamplerSelect",
    "BasicScheduler", "KarrasScheduler", "RandomNoise", "CFGGuider", "BasicGuider", "VAEDecode",
    "VAEDecodeTiled", "SaveImage", "PreviewImage", "EmptyLatentImage", "CheckpointLoaderSimple",
    "CheckpointLoader", "CLIPTextEncode", "CLIPTextEncodeSDXL", "SaveImageWebsocket", "Reroute",
    "SaveAnimatedWEBP",
}  # fmt: skip
# Ignored, with a separate note or none.
NOTED = re.compile(
    "Lora|ControlNet|VAELoader|Upscale|ImageScale|IPAdapter|LoadImage|VAEEncode|SetLastLayer|^Primitive"
    "|^Empty.*Latent|^Conditioning"
)
VALUES = ("value", "text", "string", "seed", "int", "float")  # inputs of nodes that hold a value
SAMPLERS = re.compile("KSampler(Advanced)?$|SamplerCustom")
MAX_NODES = 2000
MAX_SAMPLERS = 20


class Graph:
    """A graph of ComfyUI."""

    def __init__(self, path: Path, graph: dict[str, Any], found: ForeignSettings):
        self.path = path
        self.nodes: dict[str, tuple[str, dict[str, Any]]] = {
            key: (node["class_type"], node["inputs"])
            for key, node in islice(graph.items(), MAX_NODES)
            if isinstance(node, dict)
            and isinstance(node.get("class_type"), str)
            and isinstance(node.get("inputs"), dict)
        }
        self.found = found

    def upstream(self, *starts: Any, role: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the class and inputs of some nodes and of those they depend on, the nearest first.

        Args:
            starts: the nodes' ids.
            role: positive or negative: nodes with such an input pass on only that one.
        """
        todo, seen = [*starts], set()
        for key in todo:
            if not isinstance(key, str) or key in seen or key not in self.nodes:
                continue
            seen.add(key)
            kind, inputs = self.nodes[key]
            yield kind, inputs
            links = [inputs[role]] if role in inputs else inputs.values()
            todo += [link[0] for link in links if isinstance(link, list) and link]

    def value(self, start: Any, *keys: str) -> Any:
        """Return the nearest value under one of these keys, or that of the node linked there."""
        for _, inputs in self.upstream(start):
            for value in (inputs[key] for key in keys if key in inputs):
                if isinstance(value, str | int | float):
                    return value
                behind = self.upstream(value[0]) if isinstance(value, list) and value else ()
                for _, node in islice(behind, 10):
                    own = {k: v for k, v in node.items() if isinstance(v, str | int | float)}
                    found = [own[key] for key in (*keys, *VALUES) if key in own]
                    if found or len(own) == 1:
                        return found[0] if found else next(iter(own.values()))
        return None

    def text(self, start: Any, role: str) -> str:
        """Return a prompt: the text of the nearest encoder."""
        names = (role, "conditioning") if role == "positive" else (role,)
        inputs = (i for _, i in self.upstream(start))
        link = next((i[name] for i in inputs for name in names if name in i), None)
        if not isinstance(link, list) or not link:
            return ""
        for kind, _ in self.upstream(link[0], role=role):
            if "TextEncode" in kind:
                break
            if kind == "ConditioningZeroOut":
                self.found.note(f"the {role} prompt is zeros, not text; an empty one is used")
                return ""
            if kind != "Reroute":
                self.found.note(f"the node {kind[:100]} on the {role} prompt is left out")
        encoders = (i for k, i in self.upstream(link[0], role=role) if "TextEncode" in k)
        for inputs in encoders:
            for key in ("text", "text_g", "text_l"):
                value = inputs.get(key)
                if isinstance(value, list) and value:
                    value = self.value(value[0], *VALUES, "prompt")
                if isinstance(value, str):
                    return value
        self.found.note(f"the {role} prompt is put together by unknown nodes; it is left empty")
        return ""

    def settings(self) -> ForeignSettings:
        """Return the settings of the first sampler on the way to a saved image."""
        found = self.found
        ends = [key for key, (kind, _) in self.nodes.items() if re.search("Save|Preview", kind)]
        nodes = [*self.upstream(*ends or self.nodes)]
        used = {id(inputs): kind for kind, inputs in nodes}
        samplers = [
            key
            for key, (kind, inputs) in self.nodes.items()
            if id(inputs) in used and SAMPLERS.match(kind) and kind != "KSamplerSelect"
        ][:MAX_SAMPLERS]
        if not samplers:
            raise UserError(f"{self.path} holds a ComfyUI graph without a known sampler node")
        # The first of several passes depends on none of the others.
        first = min(
            samplers, key=lambda key: sum(bool(SAMPLERS.match(k)) for k, _ in self.upstream(key))
        )
        if len(samplers) > 1:
            found.note("further passes (hires fix) are not supported; only the first one is made")
        found.model = str(self.value(first, "ckpt_name", "unet_name") or "")
        found.prompts(self.text(first, "positive"), self.text(first, "negative"))
        schedule = self.value(first, "scheduler")
        if schedule is None and "KarrasScheduler" in used.values():
            schedule = "karras"
        name = found.sampler(self.value(first, "sampler_name"), schedule, COMFY_SAMPLERS)
        found.number("num_inference_steps", self.value(first, "steps"), int, "number of steps")
        found.number("guidance_scales", self.value(first, "cfg"), float, "guidance scale")
        found.seed(self.value(first, "seed", "noise_seed"))
        found.number("width", self.value(first, "width"), int, "width")
        found.number("height", self.value(first, "height"), int, "height")
        found.check_levels(name)
        if vae := next((inputs["vae_name"] for _, inputs in nodes if "vae_name" in inputs), None):
            found.note(f"its VAE was {str(vae)[:100]}; name the file in model.vae")
        self._note_what_is_left_out(first, [*used.values()])
        found.notes.sort()
        return found

    def _note_what_is_left_out(self, sampler: str, kinds: list[str]) -> None:
        """Note unsupported features that would change the image."""
        note = self.found.note
        images = any(re.search("LoadImage|VAEEncode", kind) for kind in kinds)
        if images or self.value(sampler, "denoise") not in (None, 1, 1.0):
            note("an initial image is not supported; the image starts from noise")
        start, noise = self.value(sampler, "start_at_step"), self.value(sampler, "add_noise")
        if start not in (None, 0) or noise in ("disable", False):
            note("a sampler that starts partway is not supported; all steps are made")
        if (batch := self.value(sampler, "batch_size")) not in (None, 1):
            note(f"only the first image of its batch of {str(batch)[:20]} is made")
        skip = self.value(sampler, "stop_at_clip_layer")
        if isinstance(skip, int):  # -1 is the last layer; XL counts from the last but one
            self.found.clip_skip = max(0, -skip - 1 - ("CLIPTextEncodeSDXL" in kinds))
        for pattern, what in {
            "Lora": "LoRA", "ControlNet": "ControlNet",
            "Upscale|ImageScale": "hires fix and enlarging", "IPAdapter": "IP-Adapter",
        }.items():  # fmt: skip
            if any(re.search(pattern, kind) for kind in kinds):
                note(f"{what} is not supported; it is left out")
        others = sorted({k for k in kinds if k not in KNOWN_NODES and not NOTED.search(k)})
        if others:
            note(f"unknown nodes are left out: {', '.join(others)[:200]}")
