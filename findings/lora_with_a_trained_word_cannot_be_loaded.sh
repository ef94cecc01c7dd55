#!/usr/bin/env bash
# diffusers saves a LoRA together with a trained word, but refuses to load the file.
#
# Versions: diffusers 0.42.1, peft 0.21.2, transformers 5.23.0.
# Behaviour: peft's LoraConfig can also train the rows of words (`trainable_token_indices`, or the
#   whole table with `modules_to_save`). `save_lora_weights` writes them into the same file;
#   `load_lora_weights` requires "lora" in the name of every tensor and raises.
# Why it matters here: pivotal tuning (learning a word and a LoRA together) produces such files, and
#   users bring them as concepts.
# Observed on 2026-11-28; the output is at the end.
source "$(dirname "$0")/common.sh"

observe peft==0.21.2 <<'PROGRAM'
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from tiny import pipeline

KINDS = {
    "a LoRA": {},
    "and a word's rows": {"trainable_token_indices": {"token_embedding": [514]}},
    "and the table": {"modules_to_save": ["token_embedding"]},
}
for number, (name, options) in enumerate(KINDS.items()):
    pipe = pipeline()
    pipe.tokenizer.add_tokens(["det-logo"])
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
    pipe.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], **options))
    StableDiffusionPipeline.save_lora_weights(
        str(number), text_encoder_lora_layers=get_peft_model_state_dict(pipe.text_encoder)
    )
    saved = load_file(f"{number}/pytorch_lora_weights.safetensors")
    print(f"{name}:", [key for key in saved if "lora" not in key])
    try:
        pipeline().load_lora_weights(str(number))
        print("  loaded")
    except ValueError as error:
        print(" ", error)
PROGRAM

expect <<'LINES'
a LoRA: []
  loaded
and a word's rows: ['text_encoder.embeddings.token_embedding.token_adapter.trainable_tokens_delta']
  Invalid LoRA checkpoint. Make sure all LoRA param names contain `'lora'` substring.
and the table: ['text_encoder.embeddings.token_embedding.weight']
  Invalid LoRA checkpoint. Make sure all LoRA param names contain `'lora'` substring.
LINES
