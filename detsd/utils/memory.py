"""What fits into a device's memory, and how to tell that something did not."""

from __future__ import annotations

import torch

LARGEST_BATCH = 16


def free_memory(device: torch.device) -> float:
    """Bytes that can be had on a GPU, PyTorch's own idle blocks among them; 4 GB of a CPU's."""
    if device.type != "cuda":
        return 4e9
    # By its number: PyTorch 2.3 takes no device without one here.
    index = torch.cuda.current_device() if device.index is None else device.index
    free, _ = torch.cuda.mem_get_info(index)
    return free + torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)


def fitting_batch_size(device: torch.device, dtype: torch.dtype, width: int, height: int) -> int:
    """A batch of images that the free memory should hold; to be halved if it does not.

    Counted from the shapes, per pixel and byte of the dtype: a guided image holds 260 bytes in
    Stable Diffusion's UNet at once, and 2300 where attention keeps all pairs, as without a fused
    kernel; one that is decoded holds 770. The second is taken: large batches gain little.
    """
    per_image = 2300 * width * height * dtype.itemsize
    return int(max(1, min(LARGEST_BATCH, 0.8 * free_memory(device) // per_image)))


def is_out_of_memory(error: Exception) -> bool:
    """Whether this was raised because a device's memory, or the CPU's, is full.

    Only the first is told by a class. cuBLAS and cuDNN report CUBLAS_STATUS_ALLOC_FAILED,
    CUDNN_STATUS_ALLOC_FAILED and, since version 9, ..._ALLOCATION_FAILED; cuDNN may also find none
    of its engines able to run in what memory is left.
    """
    said = str(error).lower()
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(
        words in said
        for words in (
            "out of memory",
            "not enough memory",
            "can't allocate memory",
            "alloc_failed",
            "allocation_failed",
            "unable to find an engine",
        )
    )
