#!/usr/bin/env bash
# `make scale-test`: tests that need root, Debian packages, images or a cluster, on this machine. Installs the packages,
# runs the parts in turn, and writes their results to docs/results/scale.md.
#   tests/scale/run.sh [PART...]     only some parts, without writing the page
set -euo pipefail
cd "$(dirname "$0")/../.."

all=(kubernetes hosts slurm image)
parts=("$@")
if [ $# = 0 ]; then parts=("${all[@]}"); fi
page=docs/results/scale.md
work=$(mktemp -d)
installed_srun=
finish() {
    rm -rf "$work"
    # Lightning warns of every run on a machine that has srun and does not use it.
    if [ "$installed_srun" ]; then apt-get purge -y -qq slurm-client slurm-wlm > /dev/null || true; fi
}
trap finish EXIT

if [ "$(id -u)" != 0 ]; then echo "This needs root: it creates network namespaces, images and a cluster."; exit 1; fi
mapfile -t packages < tests/scale/packages.txt
if ! dpkg --status "${packages[@]}" > /dev/null 2>&1; then
    apt-get update -qq
    if ! command -v srun > /dev/null; then installed_srun=yes; fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"
fi

# Prints a table row for each result in the output of a part: "TIME  --- NAME" starts a check, the last line with a time
# ends it, and "PASS NAME: ..." or "FAIL NAME: ..." is its result.
results() { # results PART
    awk -v part="$1" '
        /^[0-9][0-9]:[0-9][0-9]:[0-9][0-9] / {
            split($1, t, ":")
            now = 3600 * t[1] + 60 * t[2] + t[3]
            if ($2 == "---") { name = $3; begun = now }
            if (name) took[name] = (now - begun + 86400) % 86400
        }
        /^(PASS|FAIL) / {
            check = $2; sub(/:$/, "", check)
            seen = $0; sub(/^[A-Z]+ [^ ]+ /, "", seen); gsub(/\|/, "\\|", seen)
            printf "| %s | %s | %s | %s | %s |\n", part, check, $1, (check in took ? took[check] : ""), seen
        }
    '
}

begun=$SECONDS
for part in "${parts[@]}"; do
    echo "=== $part"
    status=0
    bash "tests/scale/$part.sh" 2>&1 | tee "$work/printed" || status=$?
    results "$part" < "$work/printed" > "$work/part"
    if [ ! -s "$work/part" ] || { [ $status != 0 ] && ! grep -q '| FAIL |' "$work/part"; }; then
        echo "| $part | | FAIL | | ended with status $status and no result |" >> "$work/part"
    fi
    cat "$work/part" >> "$work/rows"
done
failures=$(grep -c '| FAIL |' "$work/rows" || true)
minutes=$(((SECONDS - begun + 30) / 60))

version() { "$@" 2> /dev/null | grep -oE '[0-9]+(\.[0-9]+)+[^ ,]*' | sed -n 1p; }
if [ $# = 0 ]; then
    cat > "$page" << PAGE
# Scaling beyond one machine, tested on one

Checks of the files for clusters and containers, written by \`make scale-test\` ($(date -u +%Y-%m-%d), $minutes minutes, $failures checks failed).
[scaling.md](../scaling.md) has the instructions for real clusters.

## Limitations

Hosts and nodes are network namespaces of one machine, the container runs without a GPU, and the Kubernetes files were checked
against the schemas but not run on a cluster.

## Checks

$(nproc) cores, $(awk '/MemTotal/ {printf "%.0f", $2 / 2^20}' /proc/meminfo) GiB, $(. /etc/os-release && echo "$PRETTY_NAME"), kernel $(uname -r | grep -oE '^[0-9.]+'), \
Python $(version .venv/bin/python --version), torch $(.venv/bin/python -c 'import torch; print(torch.__version__)'), \
Lightning $(.venv/bin/python -c 'import lightning; print(lightning.__version__)'), buildah $(version buildah --version), podman $(version podman --version), \
runc $(version runc --version), SLURM $(version slurmctld -V).

| part | check | | seconds | result |
| --- | --- | --- | --- | --- |
$(cat "$work/rows")
PAGE
    echo "Written: $page"
fi
echo "$failures checks failed."
[ "$failures" = 0 ]
