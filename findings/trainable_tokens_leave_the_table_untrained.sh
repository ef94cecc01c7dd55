#!/usr/bin/env bash
# With peft's trainable tokens, `get_input_embeddings().weight` has the rows from before training.
#
# Versions: peft 0.21.2, transformers 5.23.0.
# Behaviour: the trained rows are in a separate parameter, `trainable_tokens_delta`, which holds
#   whole rows and not differences. The forward pass uses them, but `weight`, from which every
#   script of Textual Inversion takes the learned rows, does not change. Saving the row of `weight`
#   saves the initial phrase. The adapter's files hold the ids, but not the word.
# Why it matters here: a concept file written in this way is well-formed but holds nothing that was
#   learned, and an adapter brought as a concept needs a name.
# Observed on 2026-11-28; the output is at the end.
source "$(dirname "$0")/common.sh"

observe peft==0.21.2 <<'PROGRAM'
from pathlib import Path

import torch
from peft import TrainableTokensConfig, get_peft_model
from safetensors.torch import load_file
from tiny import pipeline

pipe = pipeline()
tokens, encoder = pipe.tokenizer, pipe.text_encoder
tokens.add_tokens(["det-logo"])
encoder.resize_token_embeddings(len(tokens))
word = tokens.convert_tokens_to_ids("det-logo")
before = encoder.get_input_embeddings().weight[word].detach().clone()
model = get_peft_model(
    encoder, TrainableTokensConfig(token_indices=[word], target_modules=["token_embedding"])
)
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
model(torch.tensor([tokens("a det-logo").input_ids]))[0][..., 0].mean().backward()
optimizer.step()
table = encoder.get_input_embeddings()
used = table(torch.tensor([word]))[0]
model.save_pretrained("adapter")
(saved,) = load_file("adapter/adapter_model.safetensors").values()
print("what the model uses has moved:", not torch.equal(used, before))
print("weight has moved:", not torch.equal(table.weight[word], before))
print("the file holds what the model uses:", torch.equal(saved[0], used))
text = Path("adapter/adapter_config.json").read_text()
print("the adapter names the word:", "det-logo" in text, "its id:", str(word) in text)
PROGRAM

expect <<'LINES'
what the model uses has moved: True
weight has moved: False
the file holds what the model uses: True
the adapter names the word: False its id: True
LINES
