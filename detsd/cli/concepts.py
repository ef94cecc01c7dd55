"""python -m detsd show, export, download: concepts, and the images made with them."""

import argparse
import json
import sys
from pathlib import Path

from detsd.concepts.source import ConceptSource
from detsd.runs.folder import RunFolder
from detsd.utils import progress
from detsd.utils.errors import UserError
from detsd.utils.paths import uuid_problem
from detsd.utils.plurals import counted


def download(args: argparse.Namespace) -> int:
    """Download all files that a checkpoint of the cluster stands for; return the exit code."""
    source = ConceptSource.parse(args.uuid)
    uuid = source.uuid or args.uuid
    if not source.model and (problem := uuid_problem(uuid)):
        raise UserError(problem)
    folder = args.output_dir or Path("outputs") / (source.model or uuid)
    RunFolder(folder).check_writable()
    from detsd.generate.shards import download_grid

    count = download_grid(source.resolved.uuid or uuid, folder)
    print(f"{folder}: {counted(count, 'image')}" if count else f"{folder}")
    return 0


def show(args: argparse.Namespace) -> int:
    """Describe a concept file or checkpoint; return the exit code."""
    if args.plot and (args.plot.is_dir() or not args.plot.suffix):
        raise UserError(f"--plot {args.plot} is not an image file name; give e.g. vectors.png")
    source = ConceptSource.parse(args.path).located
    with progress.importing_libraries():
        from detsd.evaluate.rows import describe, plot, report

    facts = describe(source, args.model)
    if args.json:
        print(json.dumps(facts, ensure_ascii=False, indent=1))
    else:
        print(report(facts))
    if args.plot:
        plot(facts, args.plot)
        print(f"picture: {args.plot}", file=sys.stderr if args.json else sys.stdout)
    return 0


def export(args: argparse.Namespace) -> int:
    """Write concepts in the layout of another tool; return the exit code."""
    sources = [ConceptSource.parse(source).located for source in args.sources]
    folder = args.output or Path("outputs") / "exported" / args.format
    RunFolder(folder).check_writable("--output")
    with progress.importing_libraries():
        from detsd.concepts.concept import family
        from detsd.concepts.reading import read_concepts
        from detsd.concepts.usage import begins_another, prompts, token
        from detsd.concepts.writing import encode, folder_for, store

    concepts = [c for source in sources for c in read_concepts(source)]
    files = encode(concepts, args.format)
    folder = folder_for(files, folder, concepts, args.format)
    store(files, folder)
    for name in files:
        print(folder / name)
    for c in concepts:
        rows, texts = counted(c.num_vectors, "vector"), prompts(c, args.format)
        print(f"{c.name}: {rows} for {family(c.widths)}" + "; in a prompt write" * bool(texts))
        for tool, text in texts.items():
            print(f"  {tool}: {text}")
        if "diffusers" in texts and token(c) != c.name:
            print("  (diffusers keeps only the first vector of a word with capital letters)")
    if args.format in ("diffusers", "a1111") and (pair := begins_another(concepts)):
        first, second = pair
        problem = f"{second} begins with {first}"
        if first == second:
            problem = f"diffusers reads two of the words as {first}, in lower case"
        print(
            f"{problem}: if diffusers loads both, give the first another word, as in "
            f'load_textual_inversion(file, token="<{first}>")'
        )
    return 0
