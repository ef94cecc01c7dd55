# Determined sources this at the start of every container, in the uploaded folder, under `set -e -x`.
#
# It installs the packages of requirements.txt that the image lacks, at the versions in constraints/.
# It does not change what the image has, least of all torch. If nothing is missing it takes a second.
# The Dockerfile also runs it, to build an image that lacks nothing.

# Under -x the shell would write every expanded command to the log.
{ case $- in *x*) detsd_traced=1 ;; *) detsd_traced= ;; esac; set +x; } 2>/dev/null

if [ "${DET_TASK_TYPE:-}" = TRIAL ] && [ "${DET_SLOT_IDS:-}" = "[]" ]; then
    echo "detsd: resources.slots_per_trial is 0, but the launcher starts one process per" \
        "slot; set it to 1 or more (an agent without a GPU also has one slot)" >&2
    exit 1
fi

detsd_install() {
    local python=${DET_PYTHON_EXECUTABLE:-python3} folder names
    folder=$(mktemp -d)
    if ! "$python" constraints/missing.py "$folder"; then
        echo "detsd: startup-hook.sh: $python cannot list the installed packages (see above); the image needs" \
            "Python 3.10 or later with the package 'packaging'" >&2
        exit 1
    fi
    if [ -s "$folder/missing.txt" ]; then
        names=$(tr '\n' ' ' <"$folder/missing.txt")
        echo "startup-hook.sh: installing $names"
        # The image's PIP_CONSTRAINT pins the versions it was built with, which contradict ours.
        if ! env -u PIP_CONSTRAINT "$python" -m pip install --quiet --disable-pip-version-check \
            -r "$folder/missing.txt" -c "$folder/constraints.txt"; then
            echo "detsd: startup-hook.sh could not install $names(see pip above); if tasks cannot reach" \
                "a package index, build an image with the Dockerfile and name it under" \
                "environment.image" >&2
            exit 1
        fi
    fi
    rm -r "$folder"
}
detsd_install

if [ "${DET_TASK_TYPE:-}" = TRIAL ]; then
    # On several nodes, torch warns in every process that a host has no name.
    export TORCH_CPP_LOG_LEVEL="${TORCH_CPP_LOG_LEVEL:-ERROR}"
    # For several processes, torchrun sets this with a warning of four lines, unless it is set.
    case "${DET_SLOT_IDS:-}" in *,*) export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" ;; esac
fi

if [ -n "$detsd_traced" ]; then set -x; fi
