#!/usr/bin/env bash
# torchmetrics' CLIPScore raises with transformers 5.
#
# Versions: torchmetrics 1.9.0 (lightning-utilities 0.15.3) with transformers 5.23.0. With 4.57.6 it
#   returns a score.
# Behaviour: in transformers 5, `get_image_features` and `get_text_features` return an output object
#   instead of a tensor. CLIPScore calls `.norm` on it, which raises an AttributeError.
# Why it matters here: concepts are compared with those of other tools by the CLIP scores of their
#   samples.
# Observed on 2026-11-28; the output is at the end.
source "$(dirname "$0")/common.sh"

observe torchmetrics==1.9.0 lightning-utilities==0.15.3 <<'PROGRAM'
import torch
from tiny import tokenizer
from torchmetrics.multimodal.clip_score import CLIPScore
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

torch.manual_seed(0)
tokens = tokenizer("words")
side = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
side |= {"num_attention_heads": 2}
text = {"vocab_size": len(tokens), "eos_token_id": tokens.eos_token_id}
text |= {"bos_token_id": tokens.bos_token_id}
vision = {"image_size": 32, "patch_size": 16}
clip = CLIPModel(CLIPConfig(text_config=side | text, vision_config=side | vision))
pictures = CLIPImageProcessor(
    size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
)
score = CLIPScore(lambda: (clip, CLIPProcessor(pictures, tokens)))
try:
    print(score(torch.randint(0, 255, (3, 32, 32)), "a cat"))
except AttributeError as error:
    print(error)
PROGRAM

expect <<'LINES'
'BaseModelOutputWithPooling' object has no attribute 'norm'
LINES
