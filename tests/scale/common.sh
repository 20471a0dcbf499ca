# shellcheck shell=bash
# To be sourced by the scripts beside it, after `set -euo pipefail`: lines with the time, waiting for conditions, and a
# verdict on each thing that is shown. The script defines `clean_up`, and `evidence` for what a failure is explained by.

REPO=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
BIN=$(realpath "${BIN:-$REPO/.venv/bin}")
WORK=$(mktemp -d "${TMPDIR:-/tmp}/lightning_paf.XXXXXX")
VERDICTS=()
SHOWING="set-up"
export OMP_NUM_THREADS=1 PATH="$BIN:$PATH"
cd "$REPO"

say() { echo "$(date +%T)  $*"; }

# show NAME: what the commands up to `passed` are about, in one word.
show() {
    SHOWING=$1
    say "--- $1"
}

# passed TEXT: it was shown; what was seen.
passed() {
    say "$1"
    VERDICTS+=("PASS $SHOWING: $1")
    SHOWING=""
}

# wait_until SECONDS COMMAND...: returns when the command succeeds; fails if it does not in time.
wait_until() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        if ((SECONDS >= end)); then
            say "waited in vain for: $*"
            return 1
        fi
        sleep 0.2
    done
}

needs() {
    local tool
    [ "$(id -u)" = 0 ] || { say "This needs root: it makes network namespaces."; return 1; }
    for tool in "$@"; do
        command -v "$tool" > /dev/null || { say "$tool is missing: apt-get install the packages of tests/scale/packages.txt"; return 1; }
    done
}

finish() {
    local status=$?
    trap - EXIT
    set +e
    if ((status)); then
        evidence
        VERDICTS+=("FAIL ${SHOWING:-end}: status $status at ${FAILED_AT:-an unknown place}")
    fi
    clean_up
    rm -rf "$WORK"
    printf '%s\n' "${VERDICTS[@]}"
    exit "$status"
}
set -E # functions, too, say where they fail
trap 'FAILED_AT="$(basename "${BASH_SOURCE[0]}"):$LINENO ($BASH_COMMAND)"' ERR
trap finish EXIT
trap 'exit 130' INT TERM
