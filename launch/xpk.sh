#!/usr/bin/env bash
# Train on TPU slices of a GKE cluster through XPK (options checked against xpk 1.16.0).
#
#   launch/xpk.sh run    --cluster C --name N --type v5litepod-16 --image IMAGE [...] -- --config P --workdir /shared/W
#   launch/xpk.sh status --cluster C --name N
#   launch/xpk.sh stop   --cluster C --name N
#
# --dry-run            print the exact command, run nothing
# --cluster C          the GKE cluster (made with `xpk cluster create`)
# --name N             name of the workload
# --type T             TPU type, as xpk names it
# --slices N           number of slices (default 1)
# --image IMAGE        container image of launch/Containerfile with EXTRA=tpu, pushed (launch/container.sh)
# --storage S          an xpk storage that holds the run folder or data; may be repeated
# --max-restarts N     how often the job set starts again (default 20)
# --grace N            seconds between SIGTERM and SIGKILL, to finish the step and save (default 120)
# --project P, --zone Z   (default: gcloud's own)
# --extra OPTION       given to xpk as it is; may be repeated (--extra=--spot)
#
# --workdir must lie on a storage that all workers share (`xpk storage attach`, Filestore or a bucket). XPK restarts on
# exit codes 42 and 127 to 255: 130 (interrupted, with a checkpoint) is among them, 1 (failed) is not; 75 (another
# process is lost) is added here.

# shellcheck source=launch/commands.sh
source "$(dirname "$0")/commands.sh"

cluster='' name='' type='' slices=1 image='' storages=() max_restarts=20 grace=120 where=()

option() {
  case $1 in
    --cluster) cluster=$2 ;;
    --name) name=$2 ;;
    --type) type=$2 ;;
    --slices) slices=$2 ;;
    --image) image=$2 ;;
    --storage) storages+=(--storage "$2") ;;
    --max-restarts) max_restarts=$2 ;;
    --grace) grace=$2 ;;
    --project | --zone) where+=("$1" "$2") ;;
    *) return 1 ;;
  esac
}

parse "run status stop" "$@"
require "$cluster" --cluster
require "$name" --name
where+=(${extra[@]+"${extra[@]}"})

train() {
  require "$type" --type
  require "$image" --image
  whole_number "$slices" --slices
  whole_number "$max_restarts" --max-restarts
  whole_number "$grace" --grace
  workdir >/dev/null
  # XPK sends SIGTERM to the shell it starts the command in; with exec that process is the training itself.
  run xpk workload create --cluster "$cluster" --workload "$name" --tpu-type "$type" --num-slices "$slices" \
    --docker-image "$image" ${storages[@]+"${storages[@]}"} --max-restarts "$max_restarts" \
    --restart-on-exit-codes 75 --termination-grace-period-seconds "$grace" ${where[@]+"${where[@]}"} \
    --command "exec $(quoted python -m genaffect_jax.train "${training[@]}")"
}

need xpk 'install it with: pip install xpk'
case $action in
  run) train ;;
  status) run xpk workload list --cluster "$cluster" --filter-by-job "$name" ${where[@]+"${where[@]}"} ;;
  stop) run xpk workload delete --cluster "$cluster" --workload "$name" ${where[@]+"${where[@]}"} ;;
esac
