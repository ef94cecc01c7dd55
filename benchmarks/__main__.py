"""All that is measured, as tables, on this machine.

    python -m benchmarks [--write] [--models demo sd1 sdxl] [--batches 1 4 8] [--only SECTION ...]

`--write` puts them into benchmarks/README.md, in a section named for the machine. `--smoke` runs
everything once on tiny models: it shows that the benchmarks work, and no figure of it means
anything.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import diffusers
import torch
import transformers

from benchmarks import finetune, generate, processes
from benchmarks.measure import matmul_peak, table
from benchmarks.models import save_random
from detsd.models import pick_dtype

README = Path(__file__).parent / "README.md"
SECTIONS = ("finetune", "generate", "data", "start", "spin")


def machine(device: torch.device) -> str:
    """The name of what computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        name = found[1] if found else platform.processor()
    except OSError:
        name = platform.processor()
    return f"{name or platform.machine()}, {torch.get_num_threads()} threads"


def measured(args: argparse.Namespace, device: torch.device) -> str:
    """The tables of one run, as Markdown."""
    dtype = pick_dtype("auto", device)
    size = 256 if args.smoke else 8192 if device.type == "cuda" else 2048
    peak = matmul_peak(device, dtype, size)
    batches = [2] if args.smoke else args.batches
    count = 1 if args.smoke else 20
    compile_too = args.compile or (device.type == "cuda" and not args.smoke)
    parts = [
        f"PyTorch {torch.__version__}, diffusers {diffusers.__version__}, transformers "
        f"{transformers.__version__}, {str(dtype).removeprefix('torch.')}; load "
        f"{os.getloadavg()[0]:.1f} at the start. A product of matrices: {peak / 1e12:.3g} TFLOP/s."
    ]
    tuning, otherwise, making = [], [], []
    with TemporaryDirectory() as place:
        folders = {"demo": "demo_model"}
        for name in args.models:
            if name != "demo":
                folders[name] = str(Path(place) / name)
                save_random(name, Path(folders[name]), device, dtype, args.smoke)
            if "finetune" in args.only:
                for batch in batches:
                    row, others = finetune.rows(
                        name, folders[name], batch, count, compile_too, peak
                    )
                    tuning.append(row)
                    otherwise.append(others)
            if "generate" in args.only:
                steps = 2 if args.smoke else 20
                images = 4 if args.smoke else 24
                making += generate.rows(name, folders[name], batches, images, steps, None)
        if tuning:
            parts.append("### Fine-tuning, samples a second\n\n" + table(finetune.HEAD, tuning))
            head = ["model", "batch", *finetune.variants(device, compile_too)]
            parts.append(
                "### The same step in other ways, samples a second\n\n" + table(head, otherwise)
            )
        if making:
            parts.append("### Generation, images a second\n\n" + table(generate.HEAD, making))
        if "data" in args.only:
            counts = [10, 100] if args.smoke else [10, 100, 1000, 10_000]
            found = finetune.data_rows(folders[args.models[0]], counts, count)
            head = ["images", "a step of batch 8, ms", "drawing a sample, ms"]
            parts.append("### Number of training images\n\n" + table(head, found))
    if "start" in args.only:
        head = ["a process", "seconds", "of the processor"]
        found = processes.start_rows(1 if args.smoke else 3)
        parts.append("### From the start of a process to its end\n\n" + table(head, found))
    if "spin" in args.only and device.type == "cpu":
        head = ["spin count", "fine-tuning, alone", "generation, alone", "fine-tuning, beside",
                "generation, beside"]  # fmt: skip
        some = (("100",), 1, 1) if args.smoke else (processes.SPINS, 20, 3)
        found = processes.spin_rows(*some)
        parts.append(
            "### Threads that wait, alone and beside one busy process\n\nThe demo's UNet at batch "
            "8, samples a second, forward and backward, and forward alone.\n\n" + table(head, found)
        )
    return "\n\n".join(parts)


def main(argv: list[str] | None = None) -> str:
    """Measure, print, and with `--write` keep; what was printed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=["demo", "sd1", "sdxl"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--compile", action="store_true", help="also on a CPU")
    parser.add_argument("--smoke", action="store_true", help="once, on tiny models")
    parser.add_argument("--write", action="store_true", help=f"into {README.name}")
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.models is None:  # the large ones take minutes a step on a CPU
        args.models = ["demo", "sd1", "sdxl"] if device.type == "cuda" else ["demo"]
    text = f"## {machine(device)}\n\n{measured(args, device)}\n"
    print(text, flush=True)
    if args.write:
        before = README.read_text()
        title = text.split("\n", 1)[0]
        others = [s for s in re.split(r"(?m)^(?=## )", before) if not s.startswith(f"{title}\n")]
        README.write_text("\n".join(s.strip() + "\n" for s in [*others, text]))
    return text


if __name__ == "__main__":
    main()
