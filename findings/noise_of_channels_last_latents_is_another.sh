#!/usr/bin/env bash
# The same seed draws different noise for channels-last latents than for contiguous ones.
#
# Versions: torch 2.13.0 on the CPU, diffusers 0.42.1.
# Behaviour: `torch.randn_like` keeps the memory format of its argument and fills it in memory
#   order, by another method than for a contiguous tensor. If one of two equal latents is
#   channels-last, as the latents of a channels-last VAE are, their noise has nothing in common.
#   `torch.randn(latents.shape)` is the same for both.
# Why it matters here: channels-last is a common way to gain speed, and training scripts usually
#   draw noise with `torch.randn_like(latents)`. With channels-last, a seed then trains on different
#   samples.
# Observed on 2026-11-30; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import torch
from tiny import vae

torch.manual_seed(0)
coder = vae().eval().to(memory_format=torch.channels_last)
with torch.no_grad():
    last = coder.encode(torch.rand(2, 3, 64, 64)).latent_dist.sample()
print("latents in channels-last memory:", last.is_contiguous(memory_format=torch.channels_last))
plain = last.contiguous()
print("the same, contiguous, are equal:", torch.equal(plain, last))
for name, draw in (("randn_like", torch.randn_like), ("randn", lambda x: torch.randn(x.shape))):
    noise = []
    for latents in (plain, last):
        torch.manual_seed(7)
        noise.append(draw(latents).flatten())
    together = torch.corrcoef(torch.stack(noise))[0, 1]
    said = "equal" if torch.equal(*noise) else f"correlated by {abs(together):.1f}"
    print(f"their noise by {name}: {said}")
PROGRAM

expect <<'LINES'
latents in channels-last memory: True
the same, contiguous, are equal: True
their noise by randn_like: correlated by 0.0
their noise by randn: equal
LINES
