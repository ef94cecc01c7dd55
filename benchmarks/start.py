"""Seconds until a mistake is told, and until `--help` is: python -m benchmarks.start

Each line is the median of five starts of a process. What a mistake costs is the import of what the
checks need; the libraries that train would take seconds.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

LINES = (
    "--help",
    "finetune gone.yaml",
    "finetune finetune_demo.yaml --set num_sgd_steps=3",
    "finetune finetune_demo.yaml --set concepts.concept_strs=cat",
    "finetune finetune_demo.yaml --set concepts.img_dirs=gone",
    "finetune finetune_demo.yaml --set concepts.concept_strs=cat "
    "--set model.pretrained_model_name_or_path=nobody/never-fetched --output-dir LICENSE/x",
    "generate finetune_demo.yaml",
    "generate generate_demo.yaml --set concepts.files=gone.pt",
    "show gone.pt",
    "app --concepts gone.pt",
)


def seconds(line: str) -> float:
    """Of one start of a process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "detsd", *line.split()], capture_output=True, check=False)
    return time.perf_counter() - began


def main() -> None:
    for line in LINES:
        print(f"{statistics.median(seconds(line) for _ in range(5)):6.2f} s  detsd {line}")


if __name__ == "__main__":
    main()
