#!/bin/bash
# A sweep on all hosts of a TPU slice, run from anywhere that `gcloud` is:
#
#   scripts/tpu_pod.sh NAME ZONE FOLDER [options of eval.sweep]
#
# The hosts have this repository in ~/dera_jax and see FOLDER, a network's file system mounted at the same
# place in all of them. They find each other by what the slice tells them. Without --mesh rows are split
# over all chips, and each host decodes its own; --mesh=data:2,model:8 splits a model over 8 chips.
# Should a host go down, the same line, on any slice, makes what is missing.
set -eu
name=$1 zone=$2 folder=$3
shift 3
options=$(printf '%q ' --coordinator=auto --coordinator-timeout=300 "--out=$folder" "$@")
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd dera_jax && python -m eval.sweep $options"
