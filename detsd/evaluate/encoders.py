"""Image encoders: CLIP, with its text encoder, and DINO."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, CLIPTokenizer

from detsd.config import EvaluatorConfig
from detsd.data.images import squared
from detsd.evaluate.lookalikes import to_squares
from detsd.evaluate.preflight import evaluator_problems, own_clip
from detsd.models.hub import CONFIG, WHOLE, ModelFiles, resolve_files
from detsd.models.spec import loading, read_json, tokenizer_for
from detsd.utils.errors import UserError
from detsd.utils.paths import resolve

BATCH_SIZE = 32  # images

HINT = "name a folder, or a model on the hub, with its weights in safetensors"

KINDS = {  # of encoders: a name for messages, and the model types in their configurations
    "clip": ("a CLIP model", ("clip",)),
    "dino": ("a DINO model", ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")),
}


@dataclass(frozen=True)
class ImageEncoder:
    """An image encoder: CLIP, with its text encoder, or DINO."""

    name: str  # as configured
    model: Any
    processor: Any  # turns images into pixels; None: [-1, 1] at the model's own size
    tokenizer: CLIPTokenizer | None  # None for DINO
    commit: str | None  # on the hub; None for a folder

    @torch.no_grad()
    def image_features(self, images: list[Image.Image]) -> torch.Tensor:
        """Return unit vectors (N, D), float32 on the CPU, in the order of the images."""
        parts = [
            self._project(self._pixels(images[k : k + BATCH_SIZE]))
            for k in range(0, len(images), BATCH_SIZE)
        ]
        return F.normalize(torch.cat(parts).float().cpu(), dim=1)

    def _pixels(self, images: list[Image.Image]) -> torch.Tensor:
        if self.processor:
            squares = [squared(image) for image in images]  # otherwise it crops them to the centre
            pixels = self.processor(images=squares, return_tensors="pt").pixel_values
        else:
            size = self.model.config.vision_config.image_size
            pixels = to_squares(images, size)
        return pixels.to(self.model.device)

    def _project(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.tokenizer:
            return self.model.visual_projection(self.model.vision_model(pixels).pooler_output)
        return self.model(pixels).last_hidden_state[:, 0]  # the class token's

    @torch.no_grad()
    def text_features(self, prompts: list[str]) -> torch.Tensor:
        """Return unit vectors (N, D), float32 on the CPU. CLIP only."""
        ids = self.tokenizer(
            prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids.to(self.model.device)
        projected = self.model.text_projection(self.model.text_model(ids).pooler_output)
        return F.normalize(projected.float().cpu(), dim=1)


def load_encoders(
    config: EvaluatorConfig,
    base_model: str,
    device: torch.device,
    commits: Mapping[str, str | None] | None = None,
) -> dict[str, ImageEncoder]:
    """Load the configured encoders: `clip`, and `dino` if one is named.

    If no CLIP is named, the one in the base model's folder is loaded.

    Args:
        commits: name -> hub commit of the encoders that earlier measurements used.
    """
    for problem in evaluator_problems(config, base_model):
        raise UserError(problem)
    names = {"clip": config.clip or own_clip(base_model), "dino": config.dino}
    # Both are resolved before the weights of either are downloaded.
    pinned = commits or {}
    sources = {w: _resolve_encoder(w, name, pinned.get(w)) for w, name in names.items() if name}
    return {
        which: _load_encoder(which, names[which], source, device)
        for which, source in sources.items()
    }


def _resolve_encoder(which: str, name: str, commit: str | None) -> ModelFiles:
    key, (title, kinds) = f"evaluator.{which}", KINDS[which]
    source = resolve_files(resolve(name), commit, key=key, index=CONFIG)
    with loading(name, HINT, key):
        kind = read_json(source, CONFIG).get("model_type")
    if kind not in kinds:  # the libraries would load it with random weights
        raise UserError(f"{key}: {name} is a model of type {kind!r}; name {title}")
    return source


def _load_encoder(which: str, name: str, source: ModelFiles, device: torch.device) -> ImageEncoder:
    source.fetch(WHOLE)
    folder, processor, tokenizer = source.folder, None, None
    own = {"trust_remote_code": False}  # otherwise the library asks before running remote code
    with loading(name, HINT, source.key):
        model = AutoModel.from_pretrained(
            folder, use_safetensors=True, variant=source.variant(WHOLE), **own
        )
        if which == "dino" or "preprocessor_config.json" in source.files:
            processor = AutoImageProcessor.from_pretrained(folder, **own)
        if which == "clip":
            own_tokenizer = source.files.keys() & {"tokenizer_config.json", "vocab.json"}
            if own_tokenizer:
                tokenizer = tokenizer_for(source, WHOLE)
            else:  # the bundled CLIP shares the base model's
                tokenizer = CLIPTokenizer.from_pretrained(folder.parent / "tokenizer")
        model.requires_grad_(False).eval().float().to(device)
    return ImageEncoder(name, model, processor, tokenizer, source.commit)
