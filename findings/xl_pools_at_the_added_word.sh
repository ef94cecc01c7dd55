#!/usr/bin/env bash
# Stable Diffusion XL pools a prompt at the added word instead of at its end.
#
# Versions: diffusers 0.42.1 with transformers 5.23.0; also 0.38.0 with 4.57.6.
# Behaviour: an encoder whose configuration has `eos_token_id: 2`, as those of Stable Diffusion XL
#   do, pools at the largest token id, which without added words is that of the end token. The ids
#   of added words are larger. The pooled state then depends only on the text before the word: two
#   prompts that differ after it have the same pooled state. Nothing is raised or logged. With the
#   tokenizer's id in the configuration, the end is found.
# Why it matters here: the UNet of Stable Diffusion XL receives the pooled state of every prompt, in
#   training too.
# Observed on 2026-11-28; the output is at the end.
source "$(dirname "$0")/common.sh"

observe <<'PROGRAM'
import torch
from tiny import pipeline_xl, text_config
from transformers import CLIPTextModelWithProjection

for end in (2, None):
    pipe = pipeline_xl(add_watermarker=False)
    config = text_config(pipe.tokenizer_2, 24, projection_dim=20)
    config.eos_token_id = end or pipe.tokenizer_2.eos_token_id
    pipe.text_encoder_2 = CLIPTextModelWithProjection(config)
    pipe.load_textual_inversion(
        {"det-logo": torch.randn(1, 24)},
        tokenizer=pipe.tokenizer_2,
        text_encoder=pipe.text_encoder_2,
    )
    for word in ("logo", "det-logo"):
        grass, sea = (pipe.encode_prompt(f"a {word} {at}")[2] for at in ("on grass", "at sea"))
        said = "equal" if torch.equal(grass, sea) else "different"
        print(f"eos_token_id {end or 'of the tokenizer'}: two prompts of {word!r} are {said}")
PROGRAM

expect <<'LINES'
eos_token_id 2: two prompts of 'logo' are different
eos_token_id 2: two prompts of 'det-logo' are equal
eos_token_id of the tokenizer: two prompts of 'logo' are different
eos_token_id of the tokenizer: two prompts of 'det-logo' are different
LINES
