#!/usr/bin/env bash
# The container: built without a registry and without a Docker daemon, from a base image built here; then training,
# stopping, resuming and evaluating in it, as an unprivileged user, with a read-only root file system and no network.
# Needs root. Uses no images of earlier builds, and leaves none.
set -euo pipefail
. "$(dirname "$0")/common.sh"

LOG=$WORK/log
image=localhost/lightning-paf:scale
evidence() { if [ -e "$LOG" ]; then tail -n 40 "$LOG"; fi; }
clean_up() {
    podman rm --all --force
    umount "$WORK/storage/overlay"
} > /dev/null 2>&1

needs buildah podman runc mmdebstrap
nofile=$(ulimit -Hn)
if [ "$nofile" = unlimited ]; then nofile=65536; fi
cat > "$WORK/storage.conf" << CONF
[storage]
driver = "overlay"
graphroot = "$WORK/storage"
runroot = "$WORK/run"
CONF
cat > "$WORK/containers.conf" << CONF
[containers]
default_ulimits = ["nofile=$nofile:$nofile", "nproc=32768:32768"]
netns = "host"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
CONF
export CONTAINERS_STORAGE_CONF=$WORK/storage.conf CONTAINERS_CONF=$WORK/containers.conf

megabytes() { podman image inspect --format '{{.Size}}' "$1" | awk '{print int($1 / 1e6)}'; }

check base-image
mirror=$(awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/debian.sources)
# bookworm has Python 3.11, the oldest that the package supports.
mmdebstrap --quiet --variant=minbase --mode=root --include=python3,python3-venv,ca-certificates \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --aptopt='Acquire::Check-Valid-Until "false"' \
    bookworm "$WORK/base.tar" "$mirror" > "$LOG" 2>&1
podman import --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    "$WORK/base.tar" localhost/python:slim > "$LOG" 2>&1
rm "$WORK/base.tar"
passed "Debian 12 with Python 3.11, made by mmdebstrap: $(megabytes localhost/python:slim) MB"

check build
# The pip settings of this machine are mounted during the build, and are not part of the image. If pip has a folder of
# wheels with torch for CPUs, it is used, since the CUDA libraries are four fifths of an image.
authorities=/etc/ssl/certs/ca-certificates.crt
printf '[global]\ncert = %s\nconstraint = /etc/pip-constraints.txt\n' $authorities > "$WORK/pip.conf"
: > "$WORK/constraints.txt"
mounts=(-v "$authorities:$authorities:ro" -v "$WORK/pip.conf:/etc/pip.conf:ro"
    -v "$WORK/constraints.txt:/etc/pip-constraints.txt:ro")
wheels=$(pip config get global.find-links 2> /dev/null || true)
torch=""
if [ -d "$wheels" ]; then
    torch=$(find "$wheels" -name 'torch-*cpu*' -printf '%f\n' | sed -n '1s/^torch-\([^-]*\)-.*/\1/p')
fi
if [ -n "$torch" ]; then
    echo "find-links = $wheels" >> "$WORK/pip.conf"
    echo "torch==$torch" > "$WORK/constraints.txt"
    mounts+=(-v "$wheels:$wheels:ro")
fi
revision=$(git rev-parse HEAD)

build() { # build FOLDER
    buildah bud --layers --format docker --network host "${mounts[@]}" --build-arg BASE_IMAGE=localhost/python:slim \
        --build-arg REVISION="$revision" --file "$1/docker/Dockerfile" --tag "$image" "$1" > "$LOG" 2>&1
}

begun=$SECONDS
build .
passed "$(megabytes $image) MB with torch ${torch:-as pip finds it}, built in $((SECONDS - begun)) s"

check labels
label() { podman image inspect --format "{{index .Labels \"org.opencontainers.image.$1\"}}" "$image"; }
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' lightning_paf/__init__.py)
[ "$(label version) $(label revision)" = "$version $revision" ]
passed "version $version and revision of the checkout"

locked=(--read-only --cap-drop all --security-opt no-new-privileges --network none --shm-size 256m
    --env OMP_NUM_THREADS=1)
volumes=(--volume runs:/app/runs --volume cache:/cache)
inside() { podman run --rm "${locked[@]}" "${volumes[@]}" "$image" "$@"; }
if ! inside python -c "import torchvision" > /dev/null 2>&1; then
    # Without a wheel of torchvision for this torch, its operators are missing. They are not used here, but the import
    # needs two of them.
    log "torchvision does not match torch here: declaring its missing operators"
    mkdir "$WORK/shim"
    cat > "$WORK/shim/sitecustomize.py" << 'PY'
import torch

missing = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    missing.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
PY
    locked+=(--volume "$WORK/shim:/shim:ro" --env PYTHONPATH=/shim)
fi

check user
[ "$(inside id -u):$(inside id -g)" = 10001:10001 ]
for folder in /app /opt/venv /etc /root; do
    if inside touch $folder/x 2> "$LOG"; then log "could write to $folder"; false; fi
done
inside sh -c 'touch /app/data/x && touch /app/runs/x && touch /cache/x && rm /app/*/x /cache/x'
passed "10001:10001, writes to /app/data, /app/runs, /cache and nowhere else"

check contents
inside sh -c 'cat /etc/pip.conf 2> /dev/null; env; ls -A / /app' > "$LOG"
if grep -E '^(cert|find-links|constraint) =|^PIP_.*(INDEX|FIND)|^(\.git|docs|tests|source)$' "$LOG"; then false; fi
passed "no pip settings of this machine, no .git, docs, tests, sources"

fit() { # fit RUN OPTIONS...: the demo's training, smaller
    echo "lightning-paf fit -c configs/demo/digits.yaml --model.activation configs/activation/pssilu.yaml \
        --data.synthetic runs/pool.npz --data.train_examples 256 --trainer.max_epochs 12 --ckpt_path auto --run runs/$*"
}

check train
inside lightning-paf synthesize --dataset digits --val_size 200 --count 500 --out runs/pool.npz > "$LOG" 2>&1
# shellcheck disable=SC2046 # words of a command
inside $(fit uninterrupted) > "$LOG" 2>&1
inside test -s runs/uninterrupted/checkpoints/last.ckpt
if grep -i "c compiler" "$LOG"; then false; fi
passed "12 epochs on digits and a synthetic pool, root read-only, no network; the C kernels of the activation were compiled inside"

check stop
# shellcheck disable=SC2046
podman run --detach --name stopped "${locked[@]}" "${volumes[@]}" "$image" $(fit stopped) > /dev/null
runs=$(podman volume inspect --format '{{.Mountpoint}}' runs)
has_started() { [ -e "$runs/stopped/checkpoints/last.ckpt" ] || [ "$(podman inspect --format '{{.State.Running}}' stopped)" != true ]; }
wait_until 300 has_started
podman stop --time 120 stopped > /dev/null
status=$(podman wait stopped)
podman logs stopped > "$LOG" 2>&1
podman rm stopped > /dev/null
[ "$status" = 75 ]
inside test -s runs/stopped/checkpoints/stopped.ckpt
passed "SIGTERM: exit status 75, stopped.ckpt holds step $(sed -n 's/.*holds step \([0-9]*\).*/\1/p' "$LOG")"

check continue
# shellcheck disable=SC2046
inside $(fit stopped) > "$LOG" 2>&1
grep -q "Resuming from runs/stopped/checkpoints/stopped.ckpt" "$LOG"
inside python -c "
import torch
a, b = (torch.load(f'runs/{run}/checkpoints/last.ckpt', weights_only=True) for run in ('uninterrupted', 'stopped'))
assert a['global_step'] == b['global_step'], (a['global_step'], b['global_step'])
assert all(torch.equal(v, b['state_dict'][k]) for k, v in a['state_dict'].items())
" > "$LOG" 2>&1
passed "the same command resumes from stopped.ckpt and ends with the weights of the uninterrupted run, bit by bit"

check early-signal
podman run --detach --name early "${locked[@]}" "$image" sleep 600 > /dev/null
podman stop --time 60 early > /dev/null
[ "$(podman wait early)" = 143 ]
podman rm early > /dev/null
passed "SIGTERM before a handler is installed ends the container with status 143"

check test
inside lightning-paf test --ckpt_path runs/stopped/checkpoints/last.ckpt --autoattack.test_examples 16 > "$LOG" 2>&1
inside lightning-paf verify runs/stopped/test/autoattack_linf_0.25.evidence.safetensors \
    --ckpt runs/stopped/checkpoints/last.ckpt > "$LOG" 2>&1
passed "AutoAttack on 16 images; the evidence is verified"

check host-user
install -d -o 4242 -g 4242 "$WORK/theirs"
cp "$runs/pool.npz" "$WORK/theirs"
# shellcheck disable=SC2046
podman run --rm "${locked[@]}" --user 4242:4242 --volume "$WORK/theirs:/app/runs" "$image" \
    $(fit one --trainer.max_epochs 1) > "$LOG" 2>&1
[ "$(stat -c %u "$WORK/theirs/one/checkpoints/last.ckpt")" = 4242 ]
passed "--user 4242:4242 trains into a folder of the host and owns the files"

check rebuild
mkdir "$WORK/changed"
cp -r docker pyproject.toml README.md LICENSE lightning_paf configs .dockerignore "$WORK/changed"
echo "CHANGED = True" >> "$WORK/changed/lightning_paf/types.py"
echo "# changed" >> "$WORK/changed/pyproject.toml"
begun=$SECONDS
build "$WORK/changed"
seconds=$((SECONDS - begun))
if grep -E "Collecting torch|Installing collected packages:.*torch" "$LOG"; then false; fi
inside python -c "from lightning_paf.types import CHANGED" 2>> "$LOG"
passed "a changed source is in the image after $seconds s, torch was not installed again"

check compose
python3 -m venv "$WORK/tools"
"$WORK/tools/bin/pip" install --quiet --disable-pip-version-check podman-compose > "$LOG" 2>&1
compose() { PATH="$WORK/tools/bin:$PATH" IMAGE=$image podman-compose -f docker/compose.yaml "$@"; }
compose up --detach --no-build tensorboard > "$LOG" 2>&1
board=$(podman ps --all --format '{{.Names}}' | grep tensorboard)
healthy() { podman healthcheck run "$board"; } > /dev/null 2>&1
wait_until 120 healthy
compose down > "$LOG" 2>&1
passed "TensorBoard of docker/compose.yaml is up, and healthy by its health check"
