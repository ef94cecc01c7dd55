"""Image encoders: CLIP, which has a text encoder beside it, and DINO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, CLIPTokenizer

from detsd.config import EvaluatorConfig
from detsd.evaluate.lookalikes import _squares
from detsd.evaluate.preflight import evaluator_problems, own_clip
from detsd.models.hub import CONFIG, WHOLE, ModelFiles, resolve_files
from detsd.models.spec import loading, read_json
from detsd.utils.errors import UserError
from detsd.utils.paths import resolve

AT_ONCE = 32  # images through an evaluator

REMEDY = "name a folder, or a model on the hub, with its weights in safetensors"

KINDS = {  # of evaluators: what they are called, and what their configurations say
    "clip": ("a CLIP", ("clip",)),
    "dino": ("a DINO", ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")),
}


# ---- evaluators ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageEncoder:
    """A network that sees images: CLIP, or DINO and its like, which know no words."""

    name: str  # as it was given
    model: Any
    processor: Any  # what makes pixels of images; None: [-1, 1] at the model's own size
    tokenizer: CLIPTokenizer | None  # None for a network without a text side
    commit: str | None  # of the hub, that it is of; None for a folder

    @torch.no_grad()
    def image_features(self, images: list[Image.Image]) -> torch.Tensor:
        """Unit vectors (N, D), float32 on the CPU; in the order of the images."""
        parts = [
            self._seen(self._pixels(images[k : k + AT_ONCE]))
            for k in range(0, len(images), AT_ONCE)
        ]
        return F.normalize(torch.cat(parts).float().cpu(), dim=1)

    def _pixels(self, images: list[Image.Image]) -> torch.Tensor:
        if self.processor:
            pixels = self.processor(images=images, return_tensors="pt").pixel_values
        else:
            size = self.model.config.vision_config.image_size
            pixels = _squares(images, size)
        return pixels.to(self.model.device)

    def _seen(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.tokenizer:
            return self.model.visual_projection(self.model.vision_model(pixels).pooler_output)
        return self.model(pixels).last_hidden_state[:, 0]  # the class token's

    @torch.no_grad()
    def text_features(self, prompts: list[str]) -> torch.Tensor:
        """Unit vectors (N, D), float32 on the CPU. Of CLIP only."""
        ids = self.tokenizer(
            prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids.to(self.model.device)
        told = self.model.text_projection(self.model.text_model(ids).pooler_output)
        return F.normalize(told.float().cpu(), dim=1)


def load_encoders(
    config: EvaluatorConfig,
    base_model: str,
    device: torch.device,
    commits: Mapping[str, str | None] | None = None,
) -> dict[str, ImageEncoder]:
    """The evaluators that are configured, as `clip` and `dino`; without the second one, the first.

    Where no CLIP is named, it is the one that lies in the base model's folder.

    Args:
        commits: of the hub's, where they have to be those that something was measured with before.

    Raises:
        UserError: no CLIP, or an evaluator that cannot be had or loaded.
    """
    for problem in evaluator_problems(config, base_model):
        raise UserError(problem)
    names = {"clip": config.clip or own_clip(base_model), "dino": config.dino}
    # Of both, before the weights of either come down.
    pinned = commits or {}
    sources = {w: _find(w, name, pinned.get(w)) for w, name in names.items() if name}
    return {which: _load(which, names[which], source, device) for which, source in sources.items()}


def _find(which: str, name: str, commit: str | None) -> ModelFiles:
    key, (title, kinds) = f"evaluator.{which}", KINDS[which]
    source = resolve_files(resolve(name), commit, key=key, index=CONFIG)
    with loading(name, REMEDY, key):
        kind = read_json(source, CONFIG).get("model_type")
    if kind not in kinds:  # the libraries would make one of random weights of it
        raise UserError(f"{key}: {name} is a model of the kind {kind!r}; name {title}")
    return source


def _load(which: str, name: str, source: ModelFiles, device: torch.device) -> ImageEncoder:
    source.fetch(WHOLE)
    folder, processor, tokenizer = source.folder, None, None
    own = {"trust_remote_code": False}  # else a terminal is asked whether to run a repository's
    with loading(name, REMEDY, source.key):
        model = AutoModel.from_pretrained(
            folder, use_safetensors=True, variant=source.variant(WHOLE), **own
        )
        if which == "dino" or "preprocessor_config.json" in source.files:
            processor = AutoImageProcessor.from_pretrained(folder, **own)
        if which == "clip":
            brings = source.files.keys() & {"tokenizer_config.json", "vocab.json"}
            # The bundled one reads the base model's texts.
            words = folder if brings else folder.parent / "tokenizer"
            tokenizer = CLIPTokenizer.from_pretrained(words)
        model.requires_grad_(False).eval().float().to(device)
    return ImageEncoder(name, model, processor, tokenizer, source.commit)
