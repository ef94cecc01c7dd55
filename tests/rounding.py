"""A digest of how this machine rounds: python tests/rounding.py

It uses only torch, and the operations and shapes of the bundled model, forward and backward. Two
machines that print the same digest give the same rows and pixels to the bit. Other kernels (of
another CPU or another torch) round differently.
"""

from __future__ import annotations

import hashlib
import os

# The instructions of nearly all x86 machines, so that fewer kernels differ.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "AVX2",
}


def digest() -> str:
    """Return the SHA-256 of the operations' outputs and gradients, as hexadecimal digits."""
    os.environ.update(ENVIRONMENT)  # torch reads them at import
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(0)
    found = hashlib.sha256()

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).requires_grad_()

    def add(output: torch.Tensor, *inputs: torch.Tensor) -> None:
        gradients = torch.autograd.grad(output.square().sum(), inputs)
        for tensor in (output, *gradients):
            found.update(tensor.detach().contiguous().numpy().tobytes())

    for batch in (1, 2, 4, 8):
        for channels, size in ((48, 16), (96, 8), (192, 4)):
            x = random(batch, channels, size, size)
            for kernel, stride in ((1, 1), (3, 1), (3, 2)):
                weight = random(2 * channels, channels, kernel, kernel)
                add(F.conv2d(x, weight, stride=stride, padding=kernel // 2), x, weight)
            add(F.silu(F.group_norm(x, 16)), x)
            add(F.interpolate(x, scale_factor=2.0, mode="nearest"), x)
        for tokens, width in ((77, 128), (64, 96), (16, 192)):
            x, weight = random(batch, tokens, width), random(4 * width, width)
            add(F.gelu(F.linear(F.layer_norm(x, (width,)), weight)), x, weight)
            add(x * torch.sigmoid(1.702 * x), x)
            add(torch.softmax(x @ x.transpose(1, 2), -1), x)
            queries, keys = random(batch, 4, tokens, width // 4), random(batch, 4, 77, width // 4)
            add(F.scaled_dot_product_attention(queries, keys, keys), queries, keys)
    return found.hexdigest()


if __name__ == "__main__":
    print(digest())
