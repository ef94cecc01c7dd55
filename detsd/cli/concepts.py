"""python -m detsd show, export, download: concepts and what was made with them."""

import argparse
import json
import sys
from pathlib import Path

from detsd.concepts.source import ConceptSource
from detsd.utils import progress


def download(args: argparse.Namespace) -> int:
    """Fetch all that a checkpoint of the cluster stands for; exit code."""
    from detsd.generate.shards import download_grid

    source = ConceptSource.parse(args.uuid)
    folder = args.output_dir or Path("outputs") / (source.model or args.uuid)
    count = download_grid(source.resolved.uuid or args.uuid, folder)
    print(f"{folder}: {count} images" if count else f"{folder}")
    return 0


def show(args: argparse.Namespace) -> int:
    """Describe a concept file or checkpoint; exit code."""
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
    """Write concepts in the layout of another tool; exit code."""
    sources = [ConceptSource.parse(source).located for source in args.sources]
    with progress.importing_libraries():
        from detsd.concepts.concept import family
        from detsd.concepts.reading import read_concepts
        from detsd.concepts.usage import begins_another, prompts, token
        from detsd.concepts.writing import encode, folder_for, store

    concepts = [c for source in sources for c in read_concepts(source)]
    files = encode(concepts, args.format)
    folder = args.output or Path("outputs") / "exported" / args.format
    folder = folder_for(files, folder, concepts, args.format)
    store(files, folder)
    for name in files:
        print(folder / name)
    for c in concepts:
        rows = "1 vector" if c.num_vectors == 1 else f"{c.num_vectors} vectors"
        texts = prompts(c, args.format)
        print(f"{c.name}: {rows} for {family(c.widths)}" + "; in a prompt write" * bool(texts))
        for tool, text in texts.items():
            print(f"  {tool}: {text}")
        if "diffusers" in texts and token(c) != c.name:
            print("  (diffusers loses all but the first vector of a word with capital letters)")
    if args.format in ("diffusers", "a1111") and (pair := begins_another(concepts)):
        print(
            "{0} begins {1}: where diffusers loads both, give the first another word, as in "
            'load_textual_inversion(file, token="<{0}>")'.format(*pair)
        )
    return 0
