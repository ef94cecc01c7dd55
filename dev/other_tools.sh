#!/usr/bin/env bash
# Every tool of docs/interoperability.md that a package index has, on files that detsd writes.
#
#   dev/other_tools.sh [PYTHON3.12]     as make setup left the checkout; some minutes, 8 GB of disk
#
# Each tool has a venv of its own, with pinned versions, in a temp folder. OTHER_TOOLS=FOLDER keeps
# venvs and files. stable-diffusion.cpp comes with inferna, which needs Python 3.12: name one, else
# python3.12 is taken; where there is none, that part is left out. (uv, which pip installs, provides
# one: uv python install 3.12.)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python312=${1:-python3.12}
work=${OTHER_TOOLS:-$(mktemp -d)}
if [ -z "${OTHER_TOOLS:-}" ]; then trap 'rm -rf "$work"' EXIT; fi
mkdir -p "$work/run"
cd "$work/run"
export HF_HUB_OFFLINE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONPATH=$root

# tool COMMAND VENV: run a command of other_tools.py, show its rows.
tool() {
    if ! "$work/$2/bin/python" "$root/dev/other_tools.py" "$1" >"$work/out" 2>"$work/errors"; then
        tail -20 "$work/errors" >&2
        exit 1
    fi
    grep '^|' "$work/out" || true
}

# venv NAME PYTHON PACKAGE ...
venv() {
    local name=$1 python=$2
    shift 2
    [ -d "$work/$name" ] || { "$python" -m venv "$work/$name"; "$work/$name/bin/pip" install -q "$@"; }
}

ln -sfn "$root/.venv" "$work/detsd"
rm -rf files wide
tool write detsd

NEW=(torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 safetensors==0.8.0
    numpy==2.4.6 pillow==12.3.0)
OLD=(torch==2.13.0 diffusers==0.38.0 transformers==4.57.6 accelerate==1.15.0 safetensors==0.8.0
    numpy==2.4.6 pillow==12.3.0)
venv new python3 "${NEW[@]}"
tool diffusers new
venv old python3 "${OLD[@]}"
tool diffusers old

venv compel python3 "${NEW[@]}" compel==2.5.1
tool compel compel

# Its loader alone: the rest of the package wants older versions of all of these.
venv stablepy python3 "${NEW[@]}" compel==2.5.1 lark==1.3.1
"$work/stablepy/bin/pip" install -q --no-deps stablepy==0.6.5
tool stablepy stablepy

if "$python312" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
    venv sdcpp "$python312" inferna==0.7.0 numpy==2.4.6
    tool sizes detsd
    tool sdcpp sdcpp
    rm full_size.safetensors
else
    echo "no Python 3.12: stable-diffusion.cpp is left out" >&2
fi
