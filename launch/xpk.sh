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
# --storage S          an xpk storage that holds the working folder or data; may be repeated
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

cluster='' name='' type='' slices=1 image='' storages=() max_restarts=20 grace=120 where=() extra=() action=${1-}
(($#)) && shift
while (($#)); do
  case $1 in
    --help | -h) action=--help && break ;;
    --dry-run) dry_run=true && shift && continue ;;
    --extra=*) extra+=("${1#*=}") && shift && continue ;;
    --) shift && training=("$@") && break ;;
  esac
  given=$(value "$@")
  case $1 in
    --cluster) cluster=$given ;;
    --name) name=$given ;;
    --type) type=$given ;;
    --slices) slices=$given ;;
    --image) image=$given ;;
    --storage) storages+=(--storage "$given") ;;
    --max-restarts) max_restarts=$given ;;
    --grace) grace=$given ;;
    --project | --zone) where+=("$1" "$given") ;;
    --extra) extra+=("$given") ;;
    *) die "$1: unknown option (--help lists them)" ;;
  esac
  shift 2
done
case $action in
  --help | -h) usage && exit ;;
  run | status | stop) ;;
  *) die "'$action': must be one of run, status, stop" ;;
esac
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
