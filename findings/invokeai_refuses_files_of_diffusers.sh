#!/usr/bin/env bash
# InvokeAI refuses concepts in diffusers' layout: it takes the number of vectors for their width.
#
# Versions: invokeai 6.14.2; the part of its model manager that recognises files, and its reader.
# Behaviour: for a file `{word: tensor}`, the model manager looks at the tensor's first dimension.
#   In the oldest files the tensor is a single vector, so this is the width: 768 means Stable
#   Diffusion 1. diffusers' own training script writes (n, 768), even for one vector, so it is n,
#   and no model has that width. InvokeAI's reader would read the file, but is never reached. For
#   `emb_params` and A1111's `string_to_param`, the model manager looks at the last dimension.
# Why it matters here: diffusers' layout is the most common one for learned concepts.
# Observed on 2026-11-30; the output is at the end.
source "$(dirname "$0")/common.sh"

export INVOKEAI_ROOT=$work/root
observe invokeai==6.14.2 compel==2.5.1 pydantic==2.14.3 pydantic_core==2.50.4 \
    pydantic-settings==2.16.3 annotated-types==0.8.0 typing-inspection==0.4.5 pyparsing==3.3.3 \
    python-dotenv==1.2.4 gguf==0.19.0 picklescan==1.0.5 onnxruntime==1.32.0 protobuf==7.36.2 \
    sentencepiece==0.2.3 blake3==1.0.11 <<'PROGRAM'
from pathlib import Path

import torch
from invokeai.backend.model_manager.configs.textual_inversion import (
    NotAMatchError,
    TI_Config_Base,
)
from invokeai.backend.model_manager.model_on_disk import ModelOnDisk
from invokeai.backend.textual_inversion import TextualInversionModelRaw
from safetensors.torch import save_file

FILES = {
    "{word: (768)}": {"det-logo": torch.randn(768)},
    "{word: (1, 768)}": {"det-logo": torch.randn(1, 768)},
    "{word: (3, 768)}": {"det-logo": torch.randn(3, 768)},
    "{emb_params: (3, 768)}": {"emb_params": torch.randn(3, 768)},
}
path = Path("det-logo.safetensors")
for name, tensors in FILES.items():
    save_file(tensors, path)
    try:
        found = TI_Config_Base._get_base_or_raise(ModelOnDisk(path)).value
    except NotAMatchError as error:
        found = str(error)
    read = tuple(TextualInversionModelRaw.from_checkpoint(path).embedding.shape)
    print(f"{name}: {found}; the reader gives {read}")
PROGRAM

expect <<'LINES'
{word: (768)}: sd-1; the reader gives (1, 768)
{word: (1, 768)}: unrecognized token dimension 1; the reader gives (1, 768)
{word: (3, 768)}: unrecognized token dimension 3; the reader gives (3, 768)
{emb_params: (3, 768)}: sd-1; the reader gives (3, 768)
LINES
