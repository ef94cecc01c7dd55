#!/usr/bin/env bash
# In .detignore, `!photos/` does not bring back a folder that a line above leaves out.
#
# Versions: determined 0.38.1 with pathspec 1.1.1; compared with git.
# Behaviour: `det` reads .detignore like .gitignore, with a difference for folders. It leaves a
#   folder out if a pattern matches the folder's name with or without a slash behind it. In git,
#   `/*` with `!/photos/` leaves out everything but photos; so does `*` with `!*/` and `!*.jpg`
#   leave out everything but pictures. In .detignore, `/*` and `*` still match the name without the
#   slash: the task gets no picture. `!/photos` without a slash works in both.
# Why it matters here: the uploaded folder is limited to 95 MiB, so one names what a task needs.
# Observed on 2026-11-30; the output is at the end.
source "$(dirname "$0")/common.sh"

observe determined==0.38.1 pathspec==1.1.1 requests==2.31.0 urllib3==2.8.0 idna==3.20 \
    certifi==2026.10.18 charset-normalizer==3.5.2 ruamel.yaml==0.19.1 psutil==7.2.2 \
    filelock==4.2.11 appdirs==1.4.4 <<'PROGRAM'
import subprocess
from pathlib import Path

from determined.common import detignore

FILES = ("train.yaml", "outputs/old.jpg", "photos/a.jpg", "photos/more/b.jpg")
PATTERNS = (
    ["outputs/"],
    ["/*", "!/train.yaml", "!/photos"],
    ["/*", "!/train.yaml", "!/photos/"],
    ["*", "!*/", "!*.jpg"],
    ["photos/*", "!photos/more/"],
)
root = Path("context").resolve()
for name in FILES:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("")
subprocess.run(["git", "init", "-q", root], check=True)
for patterns in PATTERNS:
    for name in (".detignore", ".gitignore"):
        (root / name).write_text("\n".join(patterns))
    given = {Path(f.path).as_posix() for f in detignore.os_walk_to_v1Files(root, Path())}
    git = ["git", "-C", root, "-c", "core.excludesFile=/dev/null", "ls-files", "-oc"]
    kept = subprocess.run([*git, "--exclude-standard"], capture_output=True, text=True).stdout
    both = (sorted(set(FILES) & found) for found in (given, set(kept.split())))
    det, git = (", ".join(names) or "none" for names in both)
    print(*patterns, "->", f"det: {det}" + (f" / git: {git}" if det != git else ""))
PROGRAM

expect <<'LINES'
outputs/ -> det: photos/a.jpg, photos/more/b.jpg, train.yaml
/* !/train.yaml !/photos -> det: photos/a.jpg, photos/more/b.jpg, train.yaml
/* !/train.yaml !/photos/ -> det: train.yaml / git: photos/a.jpg, photos/more/b.jpg, train.yaml
* !*/ !*.jpg -> det: none / git: outputs/old.jpg, photos/a.jpg, photos/more/b.jpg
photos/* !photos/more/ -> det: outputs/old.jpg, train.yaml / git: outputs/old.jpg, photos/more/b.jpg, train.yaml
LINES
