"""Gigabytes that a fine-tuning needs on a GPU, counted without one: python -m benchmarks.memory

The parameters, and the tensors that autograd keeps for the backward pass of one image at the
family's own size, from the shapes alone (PyTorch's meta device), in half precision. Attention is
assumed to keep no matrix of all pairs, as with PyTorch's fused kernels. Not counted: CUDA itself,
PyTorch's pools, and the temporary memory of single operations.
"""

from __future__ import annotations

import json
import math

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from detsd.models.single_file import CONFIGS

DTYPE = torch.bfloat16


def parts(family: str) -> dict[str, torch.nn.Module]:
    """Return the models of a family, frozen, without memory."""

    def read(part: str) -> dict:
        return json.loads((CONFIGS / family / part / "config.json").read_text())

    torch.set_default_dtype(DTYPE)
    with torch.device("meta"):
        made = {
            "unet": UNet2DConditionModel.from_config(read("unet")),
            "vae": AutoencoderKL.from_config(read("vae")),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**read("text_encoder"))),
        }
        if family == "sdxl":
            second = CLIPTextConfig(**read("text_encoder_2"))
            made["text_encoder_2"] = CLIPTextModelWithProjection(second)
    torch.set_default_dtype(torch.float32)
    return {name: part.requires_grad_(False) for name, part in made.items()}


def kept(unet: UNet2DConditionModel) -> int:
    """Return the bytes that one image's UNet pass keeps for the gradient of the text states."""
    weights = {p.untyped_storage()._cdata for p in unet.parameters()}
    found = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            found[storage._cdata] = (
                storage,
                storage.nbytes(),
            )  # kept alive, so that no other gets its id
        return tensor

    side, c = unet.config.sample_size, unet.config
    told = torch.zeros(1, 77, c.cross_attention_dim, dtype=DTYPE, device="meta", requires_grad=True)
    added = None
    if c.addition_embed_type:
        pooled = c.projection_class_embeddings_input_dim - 6 * c.addition_time_embed_dim
        added = {
            "text_embeds": torch.zeros(1, pooled, dtype=DTYPE, device="meta", requires_grad=True),
            "time_ids": torch.zeros(1, 6, device="meta"),
        }
    noisy = torch.zeros(1, 4, side, side, dtype=DTYPE, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        unet(noisy, torch.zeros(1, device="meta"), told, added_cond_kwargs=added)
    return sum(size for _, size in found.values())


class _Fused(torch.autograd.Function):
    """An attention that keeps the tensors of a fused kernel: inputs, output, a number per query."""

    @staticmethod
    def forward(ctx, query, key, value):
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1]))
        return out


def main() -> None:
    F.scaled_dot_product_attention = lambda q, k, v, *_, **__: _Fused.apply(q, k, v)
    print("family   weights    VAE   kept for one image   the same, computed twice")
    for family in ("sd1", "sd2", "sdxl"):
        models = parts(family)
        size = {n: sum(p.numel() for p in m.parameters()) * 2 / 1e9 for n, m in models.items()}
        vae = size.pop("vae")
        whole = kept(models["unet"]) / 1e9
        models["unet"].enable_gradient_checkpointing()
        twice = kept(models["unet"]) / 1e9
        total = math.fsum(size.values())
        print(f"{family:6} {total:7.2f} GB {vae:5.2f} {whole:13.2f} GB {twice:18.2f} GB")


if __name__ == "__main__":
    main()
