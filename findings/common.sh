# Sourced by each script: a temp folder, pinned packages, and a check against the recorded output.
#
# FINDINGS_VENV=FOLDER keeps and reuses the venv with the packages that all scripts share (they take
# two minutes to install). Other packages of a script go into its temp folder.
set -euo pipefail

findings=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
venv=$work/venv
if [ -n "${FINDINGS_VENV:-}" ]; then
    venv=$(realpath -m "$FINDINGS_VENV")
fi
cd "$work"

export PYTHONPATH=$findings PYTHONDONTWRITEBYTECODE=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# The versions of constraints/tested.txt; Python 3.11 or later.
SHARED=(
    torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0
    huggingface_hub==2.4.0 numpy==2.4.6 pillow==12.3.0 safetensors==0.8.0 tokenizers==0.23.3
)

# packages [NAME==VERSION ...]: install the shared packages, and the named ones ahead of them.
packages() {
    if ! cmp -s <(echo "${SHARED[@]}") "$venv/pins"; then
        python3 -m venv "$venv"
        "$venv/bin/pip" install -q "${SHARED[@]}" 2>"$work/pip" || { cat "$work/pip" >&2; exit 1; }
        echo "${SHARED[@]}" >"$venv/pins"
    fi
    if [ $# -gt 0 ]; then
        "$venv/bin/pip" install -q --no-deps --target "$work/more" "$@" 2>"$work/pip" ||
            { cat "$work/pip" >&2; exit 1; }
        export PYTHONPATH=$work/more:$PYTHONPATH
    fi
}

# observe [NAME==VERSION ...] <<PROGRAM: run a Python program, and keep its output.
observe() {
    cat >"$work/program.py"
    packages "$@"
    run "$work/program.py"
}

# run PROGRAM [ARGUMENT ...]: run it, and append its output to what was seen.
run() {
    "$venv/bin/python" "$@" >>"$work/seen" 2>"$work/errors" || { cat "$work/errors" >&2; exit 1; }
}

# expect <<LINES: fail if these are not the lines seen.
expect() {
    cat "$work/seen"
    if ! diff - "$work/seen" >"$work/difference"; then
        echo "$(basename "$0"): no longer as recorded (< recorded, > seen):" >&2
        cat "$work/difference" >&2
        exit 1
    fi
}
