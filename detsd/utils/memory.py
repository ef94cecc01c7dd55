"""Estimate a batch size that fits a device's memory; recognise out-of-memory errors."""

import contextlib
import ctypes

import torch

MAX_BATCH_SIZE = 16
OUT_OF_MEMORY = (  # in the text of an error, in lower case
    "out of memory", "not enough memory", "can't allocate memory", "alloc_failed",
    "allocation_failed", "unable to find an engine",
)  # fmt: skip


def free_memory(device: torch.device) -> float:
    """Return the bytes free on a GPU, including PyTorch's own idle blocks; 4 GB on a CPU."""
    if device.type != "cuda":
        return 4e9
    # By number: PyTorch 2.3 does not accept a device without one here.
    index = torch.cuda.current_device() if device.index is None else device.index
    free, _ = torch.cuda.mem_get_info(index)
    return free + torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)


def fitting_batch_size(device: torch.device, dtype: torch.dtype, width: int, height: int) -> int:
    """Return a batch size that the free memory should hold; callers halve it if it does not.

    By the shapes, per pixel and byte of the dtype, a guided image takes 260 bytes in Stable
    Diffusion's UNet, or 2300 if attention keeps all pairs, as it does without a fused kernel;
    decoding it takes 770. 2300 is used, since large batches gain little.
    """
    per_image = 2300 * width * height * dtype.itemsize
    return int(max(1, min(MAX_BATCH_SIZE, 0.8 * free_memory(device) // per_image)))


def give_back_memory() -> None:
    """Return freed memory to the system.

    glibc keeps the memory of tensors below 32 MB, and that of pictures for each thread.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not glibc: macOS, musl, Windows
        ctypes.CDLL(None).malloc_trim(0)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether this was raised because a device's memory, or the CPU's, is full.

    Only PyTorch's allocator raises its own class. cuBLAS and cuDNN report
    CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED and, since version 9,
    ..._ALLOCATION_FAILED; cuDNN may also find that none of its engines can run in the memory left.
    """
    text = str(error).lower()
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(w in text for w in OUT_OF_MEMORY)
