#!/usr/bin/env bash
# InvokeAI finds a concept in a prompt only if its name is ASCII, and logs nothing otherwise.
#
# Versions: invokeai 6.14.2; only this function of it, since its module needs all of InvokeAI.
# Behaviour: a prompt names a concept as `<name>`. InvokeAI looks for names by a pattern of ASCII
#   letters, digits, spaces and the characters . , _ and -. It reads `<straßen-logo>` and `<logo+>`
#   as text: no concept is loaded, and nothing is logged.
# Why it matters here: words are invented, often in languages other than English, and a concept's
#   name is that of its file.
# Observed on 2026-11-30; the output is at the end.
source "$(dirname "$0")/common.sh"

observe invokeai==6.14.2 <<'PROGRAM'
import ast
import importlib.util
import re
from pathlib import Path

folder = Path(importlib.util.find_spec("invokeai").submodule_search_locations[0])
module = ast.parse((folder / "app/util/ti_utils.py").read_text())
wanted = "extract_ti_triggers_from_prompt"
(function,) = (n for n in module.body if isinstance(n, ast.FunctionDef) and n.name == wanted)
names = {"re": re, "List": list}
exec(compile(ast.Module([function], []), "ti_utils", "exec"), names)

for name in ("det-logo", "Det Logo_7.b", "straßen-logo", "логотип", "商标", "logo+", "logo(2)"):
    print(f"<{name}>:", names[wanted](f"a photo of a <{name}> on grass") or "not found")
PROGRAM

expect <<'LINES'
<det-logo>: ['<det-logo>']
<Det Logo_7.b>: ['<Det Logo_7.b>']
<straßen-logo>: not found
<логотип>: not found
<商标>: not found
<logo+>: not found
<logo(2)>: not found
LINES
