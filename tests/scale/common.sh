# shellcheck shell=bash
# Sourced by the other scripts after `set -euo pipefail`: log lines with the time, waiting for conditions, and a result
# for each check. The script defines `clean_up`, and `evidence`, which prints logs after a failure.

REPO=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
BIN=$(realpath "${BIN:-$REPO/.venv/bin}")
WORK=$(mktemp -d "${TMPDIR:-/tmp}/lightning_paf.XXXXXX")
RESULTS=()
CHECK="set-up"
export OMP_NUM_THREADS=1 PATH="$BIN:$PATH"
cd "$REPO"

log() { echo "$(date +%T)  $*"; }

# check NAME: starts a check, which ends with `passed`.
check() {
    CHECK=$1
    log "--- $1"
}

# passed TEXT: ends a successful check.
passed() {
    log "$1"
    RESULTS+=("PASS $CHECK: $1")
    CHECK=""
}

# wait_until SECONDS COMMAND...: waits until the command succeeds; fails after so many seconds.
wait_until() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        if ((SECONDS >= end)); then
            log "timed out waiting for: $*"
            return 1
        fi
        sleep 0.2
    done
}

needs() {
    local tool
    [ "$(id -u)" = 0 ] || { log "This needs root: it creates network namespaces."; return 1; }
    for tool in "$@"; do
        command -v "$tool" > /dev/null || { log "$tool is missing: apt-get install the packages of tests/scale/packages.txt"; return 1; }
    done
}

finish() {
    local status=$?
    trap - EXIT
    set +e
    if ((status)); then
        evidence
        RESULTS+=("FAIL ${CHECK:-end}: status $status at ${FAILED_AT:-an unknown line}")
    fi
    clean_up
    rm -rf "$WORK"
    printf '%s\n' "${RESULTS[@]}"
    exit "$status"
}
set -E # report failures inside functions, too
trap 'FAILED_AT="$(basename "${BASH_SOURCE[0]}"):$LINENO ($BASH_COMMAND)"' ERR
trap finish EXIT
trap 'exit 130' INT TERM
