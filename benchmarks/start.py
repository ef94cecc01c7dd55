"""Seconds until a mistake is told, and until `--help` is: python -m benchmarks.start

Each line is the median of five starts of a process, and the processor's part of it, to which other
programs on the machine do not add. What a mistake costs is the import of what the checks need; the
libraries that train would take seconds.
"""

from __future__ import annotations

import resource
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


def seconds(line: str) -> tuple[float, float]:
    """Of one start of a process, on the clock and on the processor."""
    began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "detsd", *line.split()], capture_output=True, check=False)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return time.perf_counter() - began, worked


def main() -> None:
    for line in LINES:
        times = zip(*(seconds(line) for _ in range(5)), strict=True)
        waited, worked = map(statistics.median, times)
        print(f"{waited:6.2f} s, {worked:5.2f} s of the processor: detsd {line}")


if __name__ == "__main__":
    main()
