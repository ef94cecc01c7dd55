# Determined sources this at the start of every container, in the uploaded folder, under `set -e -x`.
#
# It installs what requirements.txt asks for and the image lacks, at the versions in constraints/,
# and leaves the rest as the image has it, torch above all. With nothing missing it takes a second.
# The Dockerfile runs it too, for an image that starts with nothing missing.

# Under -x every command, expanded, would be echoed into the log.
{ case $- in *x*) detsd_traced=1 ;; *) detsd_traced= ;; esac; set +x; } 2>/dev/null

if [ "${DET_TASK_TYPE:-}" = TRIAL ] && [ "${DET_SLOT_IDS:-}" = "[]" ]; then
    echo "startup-hook.sh: resources.slots_per_trial is 0, but the launcher starts one process per" \
        "slot; give it 1 or more (an agent without a GPU has one slot, too)" >&2
    exit 1
fi

detsd_install() {
    local python=${DET_PYTHON_EXECUTABLE:-python3} folder names
    folder=$(mktemp -d)
    if ! "$python" constraints/missing.py "$folder"; then
        echo "startup-hook.sh: $python cannot tell what is installed (see above); the image needs" \
            "Python 3.10 or later with the package 'packaging'" >&2
        exit 1
    fi
    if [ -s "$folder/missing.txt" ]; then
        names=$(tr '\n' ' ' <"$folder/missing.txt")
        echo "startup-hook.sh: installing $names"
        # PIP_CONSTRAINT of the image pins what it was built with, and would contradict ours.
        if ! env -u PIP_CONSTRAINT "$python" -m pip install --quiet --disable-pip-version-check \
            -r "$folder/missing.txt" -c "$folder/constraints.txt"; then
            echo "startup-hook.sh: could not install $names(see pip above); where tasks have no way" \
                "to a package index, build an image with the Dockerfile and name it under" \
                "environment.image" >&2
            exit 1
        fi
    fi
    rm -r "$folder"
}
detsd_install

if [ -n "$detsd_traced" ]; then set -x; fi
