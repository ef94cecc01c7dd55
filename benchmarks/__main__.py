"""All measurements on this machine, as tables.

    python -m benchmarks [--write] [--models demo sd1 sdxl] [--batches 1 4 8] [--only SECTION ...]

`--write` puts them into benchmarks/README.md, in a section named after the machine. `--smoke` runs
everything once on tiny models, to show that the benchmarks work; its figures mean nothing. A new
table replaces the old one; in tables with several models or batches, only the measured rows.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import diffusers
import torch
import transformers

from benchmarks import finetune, generate, processes, resident, spread, start
from benchmarks.measure import table
from benchmarks.models import save_random
from detsd.models.loading import DTYPES, pick_dtype

README = Path(__file__).parent / "README.md"
SECTIONS = ("finetune", "generate", "data", "start", "spin")
# They take hours on a slow machine, or need settings to be named: only if asked for.
LONG_SECTIONS = ("spread", "memory", "shipped")


def machine(device: torch.device) -> str:
    """Return the name of the GPU or CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        name = found[1] if found else platform.processor()
    except OSError:
        name = platform.processor()
    return f"{name or platform.machine()}, {torch.get_num_threads()} threads"


@dataclass
class Table:
    """A table of measurements; the first `keys` cells of a row name what was measured."""

    title: str
    head: list[str]
    rows: list[list[object]]
    keys: int = 1
    note: str = ""

    def __str__(self) -> str:
        return "\n\n".join(
            filter(None, [f"### {self.title}", self.note, table(self.head, self.rows)])
        )

    def over(self, old: str) -> str:
        """Return this table with an old one's rows for other things."""
        lines, former = str(self).split("\n"), old.split("\n")
        n = len(lines) - len(self.rows)
        if former[:n] != lines[:n]:  # other columns
            return str(self)

        def key(line: str) -> tuple[str, ...]:
            return tuple(line.split(" | ")[: self.keys])

        new = {key(line): line for line in lines[n:]}
        return "\n".join([*lines[:n], *({key(line): line for line in former[n:]} | new).values()])


def measured(args: argparse.Namespace, device: torch.device) -> Iterator[Table]:
    """Yield tables as they are measured; those of several models and batches row by row."""
    batches, calls = ([2], 1) if args.smoke else (args.batches, args.calls)
    steps, images = (2, 4) if args.smoke else (args.steps, args.images)
    compile_too = args.compile or (device.type == "cuda" and not args.smoke)
    with TemporaryDirectory() as place:
        folders = {"demo": "demo_model"}
        for name in args.models:
            if name != "demo":
                folders[name] = str(Path(place) / name)
                dtype = pick_dtype(args.precision, device)
                save_random(name, Path(folders[name]), device, dtype, args.smoke)
            model = {"pretrained_model_name_or_path": folders[name], "precision": args.precision}
            for batch in batches if "finetune" in args.only else []:
                row, others = finetune.rows(name, model, batch, calls, compile_too)
                yield Table("Fine-tuning, samples a second", finetune.HEAD, [row], 2)
                head = ["model", "batch", *finetune.variants(device, compile_too)]
                yield Table("The same step in other ways, samples a second", head, [others], 2)
            for batch in batches if "generate" in args.only else []:
                row = generate.row(name, model, batch, images, steps)
                yield Table("Generation, images a second", generate.HEAD, [row], 2)
            if "data" in args.only and name == args.models[0]:
                counts = [10, 100] if args.smoke else [10, 100, 1000, 10_000]
                head = ["images", "a step of batch 8, ms", "drawing a sample, ms"]
                yield Table(
                    "Number of training images", head, finetune.data_rows(model, counts, calls)
                )
    if "start" in args.only and args.against:
        note = f"Medians of {args.pairs} pairs of runs, in seconds."
        for row in start.rows(args.against, Path(__file__).parents[1], args.pairs):
            yield Table("Starts beside those of another version", start.HEAD, [row], note=note)
    elif "start" in args.only:
        head = ["a process", "seconds", "of the processor"]
        rows = processes.start_rows(1 if args.smoke else 3)
        yield Table("From the start of a process to its end", head, rows)
    if "shipped" in args.only:
        note = f"Medians of {args.pairs} pairs in one process, images a second."
        row = generate.shipped_row(args.set, args.pairs)
        yield Table("The shipped grid with other settings", generate.SHIPPED_HEAD, [row], note=note)
    if "spin" in args.only and device.type == "cpu":
        head = ["spin count", "fine-tuning, alone", "generation, alone", "fine-tuning, beside",
                "generation, beside"]  # fmt: skip
        some = (("100",), 1, 1) if args.smoke else (processes.SPINS, 20, 3)
        rows = processes.spin_rows(*some)
        title = "Threads that wait, alone and beside one busy process"
        note = (
            "The demo's UNet at batch 8, samples a second, forward and backward, and forward alone."
        )
        yield Table(title, head, rows, note=note)
    if "memory" in args.only:
        names = [name for name in args.models if name in resident.MODELS] or ["sd1"]
        precision = "bf16" if args.precision == "auto" else args.precision
        others = [args.against] if args.against else []
        found = resident.rows(names, precision, "fp32", [resident.ROOT, *others], args.smoke)
        head = [*resident.HEAD, *(["GB of the other version"] if others else [])]
        yield Table(f"Peak resident memory in {precision}", head, [*found], 2)
    if "spread" in args.only:
        settings = [*args.set, *(["training.num_sgd_steps=2"] if args.smoke else [])]
        lines = spread.measured(args.concepts, args.layouts, args.seeds, settings, args.score)
        note = " ".join(["`finetune_demo.yaml`", *settings]) + "."
        yield Table("Spread by rounding", spread.HEAD, spread.rows([*lines]), 2, note)


def keep(title: str, about: str, new: Table) -> None:
    """Put a table into the machine's section of README.md, beside the section's other tables.

    A section measured with other libraries is replaced.
    """
    parts = re.split(r"(?m)^(?=## )", README.read_text(encoding="utf-8"))
    own = [part for part in parts if part.startswith(f"{title}\n")]
    told, *tables = re.split(r"(?m)^(?=### )", own[0] if own else "")
    named = {t.split("\n")[0]: t.strip() for t in tables if about in told}
    name = f"### {new.title}"
    named[name] = new.over(named.get(name, ""))
    section = "\n\n".join([title, about, *named.values()])
    others = [part.strip() for part in parts if part not in own]
    README.write_text("\n\n".join([*others, section]) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Measure; print every table as soon as it is measured and, with `--write`, keep it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=["demo", "sd1", "sdxl"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--only", nargs="+", choices=SECTIONS + LONG_SECTIONS, default=SECTIONS)
    parser.add_argument("--precision", choices=["auto", *DTYPES], default="auto")
    parser.add_argument("--calls", type=int, default=20, help="between two readings of the clock")
    parser.add_argument("--images", type=int, default=24, help="in a grid")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of an image")
    parser.add_argument("--compile", action="store_true", help="compile on a CPU as well")
    asked = parser.add_argument_group("start, shipped")
    asked.add_argument("--against", type=Path, metavar="DIR", help="folder of another version")
    asked.add_argument("--pairs", type=int, default=5)
    asked = parser.add_argument_group("spread, shipped")
    asked.add_argument("--set", nargs="+", default=[], help="settings, such as section.key=value")
    asked = parser.add_argument_group("spread")
    asked.add_argument("--concepts", nargs="+", choices=spread.CONCEPTS, default=[*spread.CONCEPTS])
    asked.add_argument(
        "--layouts", nargs="+", type=spread.layout, default=spread.LAYOUTS, help="1:8x1 2:4x2"
    )
    asked.add_argument("--seeds", nargs="+", type=int, default=spread.SEEDS)
    asked.add_argument("--score", type=int, default=0, help="samples of the score; 0: no score")
    parser.add_argument("--smoke", action="store_true", help="run once, on tiny models")
    parser.add_argument("--write", action="store_true", help=f"keep the tables in {README.name}")
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.models is None:  # the large ones take minutes per step on a CPU
        args.models = ["demo", "sd1", "sdxl"] if device.type == "cuda" else ["demo"]
    title = f"## {machine(device)}"
    about = (
        f"PyTorch {torch.__version__}, diffusers {diffusers.__version__}, transformers "
        f"{transformers.__version__}."
    )
    print(f"{title}\n\n{about} Load {os.getloadavg()[0]:.1f} at the start.", flush=True)
    for made in measured(args, device):
        print(f"\n{made}", flush=True)
        if args.write:
            keep(title, about, made)


if __name__ == "__main__":
    main()
