"""python -m detsd show, export, download: concepts and what was made with them."""

from __future__ import annotations

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
        from detsd.concepts.writing import encode, store
        from detsd.utils.paths import file_name

    concepts = [c for source in sources for c in read_concepts(source)]
    folder = args.output or Path("outputs") / "exported" / args.format
    files = encode(concepts, args.format)
    store(files, folder)
    for name in files:
        print(folder / name)
    for c in concepts:
        by_file = file_name(c.name)
        also = "" if by_file == c.name else f" (where the file's name counts: {by_file})"
        rows = "1 vector" if len(c.embeddings) == 1 else f"{len(c.embeddings)} vectors"
        print(f"the word in prompts is {c.name}{also}; {rows} for {family(c.widths)}")
    return 0
