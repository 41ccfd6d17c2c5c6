#!/usr/bin/env bash
# Train on a Cloud TPU VM, on all of its workers (hosts).
#
#   launch/tpu_vm.sh create --name N --zone Z --type v5litepod-16 --runtime v2-alpha-tpuv5-lite [--spot | --queued]
#   launch/tpu_vm.sh setup  --name N --zone Z [--revision REV] [--repository URL]
#   launch/tpu_vm.sh run    --name N --zone Z [--max-restarts 20] -- --config C --workdir /shared/W [...]
#   launch/tpu_vm.sh status --name N --zone Z
#   launch/tpu_vm.sh stop   --name N --zone Z      finish the step, save, end; `run` continues
#   launch/tpu_vm.sh exec   --name N --zone Z -- COMMAND [...]      any command, on all workers
#   launch/tpu_vm.sh delete --name N --zone Z [--spot | --queued]
#
# --dry-run            print the exact commands, run nothing
# --project P          Google Cloud project (default: gcloud's own)
# --spot               spot capacity, through a queued resource of the same name
# --queued             on-demand capacity through a queued resource
# --revision REV       git revision to install (default HEAD); uncommitted changes are not part of it
# --repository URL     workers clone from URL; by default the revision is packed here and copied to them
# --python PYTHON      Python 3.11 or newer on the workers (default: the newest found, else CPython 3.11 through uv)
# --folder F           folder below the home folder of every worker (default genaffect_jax)
# --max-restarts N     how often a training that ends with a code of --restart-on starts again (default 20)
# --restart-on CODES   exit codes, separated by commas (default 130,75: interrupted, with a checkpoint; a lost process)
# --extra OPTION       given to gcloud as it is in create, delete, ssh and scp; may be repeated (--extra=--internal-ip)
#
# --workdir and the data must lie on storage that all workers share (NFS, Filestore, gcsfuse), mounted beforehand.
# Every worker runs the same command, with --distributed.cluster gcetpu added unless you give --distributed options of
# your own. It runs detached, with its log in genaffect_jax/run/train.log on each worker. `run` leaves workers alone that
# already run the same command. A spot TPU that was taken away must be deleted, created and set up again; `run` then continues.

# shellcheck source=launch/commands.sh
source "$(dirname "$0")/commands.sh"
launch=$(cd "$(dirname "$0")" && pwd)

name='' zone='' project='' type='' runtime='' capacity='' revision=HEAD repository='' python=''
folder=genaffect_jax max_restarts=20 restart_on=130,75

flag() {
  case $1 in
    --spot | --queued) capacity=${1#--} ;;
    *) return 1 ;;
  esac
}

option() {
  case $1 in
    --name) name=$2 ;;
    --zone) zone=$2 ;;
    --project) project=$2 ;;
    --type) type=$2 ;;
    --runtime) runtime=$2 ;;
    --revision) revision=$2 ;;
    --repository) repository=$2 ;;
    --python) python=$2 ;;
    --folder) folder=$2 ;;
    --max-restarts) max_restarts=$2 ;;
    --restart-on) restart_on=$2 ;;
    *) return 1 ;;
  esac
}

parse "create setup run status stop exec delete" "$@"
require "$name" --name
require "$zone" --zone
where=(--zone "$zone" ${project:+--project "$project"} ${extra[@]+"${extra[@]}"})
tpus=(gcloud compute tpus)

on_workers() {
  run "${tpus[@]}" tpu-vm ssh "$name" "${where[@]}" --worker all --command "$(quoted "$@")"
}

# The script is copied by `setup` and stays in the home folder, so that it works before and without the project.
worker=(bash genaffect_jax_worker.sh)

create() {
  require "$type" --type
  require "$runtime" --runtime
  if [[ $capacity ]]; then
    local spot=()
    [[ $capacity == spot ]] && spot=(--spot)
    run "${tpus[@]}" queued-resources create "$name" --node-id "$name" --accelerator-type "$type" \
      --runtime-version "$runtime" ${spot[@]+"${spot[@]}"} "${where[@]}"
  else
    run "${tpus[@]}" tpu-vm create "$name" --accelerator-type "$type" --version "$runtime" "${where[@]}"
  fi
}

setup() {
  local source files=("$launch/tpu_worker.sh:genaffect_jax_worker.sh") file
  if [[ $repository ]]; then
    [[ $revision != HEAD ]] || die '--repository needs --revision too, a branch, tag or commit of it'
    source=(--repository "$repository" --revision "$revision")
  else
    need git 'it packs the revision; or name a --repository'
    local packed=${TMPDIR:-/tmp}/genaffect_jax-$name.tar.gz
    run git -C "$(dirname "$launch")" archive --format tar.gz --output "$packed" "$revision"
    files+=("$packed:genaffect_jax.tar.gz")
    source=(--archive genaffect_jax.tar.gz)
  fi
  for file in "${files[@]}"; do
    run "${tpus[@]}" tpu-vm scp "${file%:*}" "$name:${file##*:}" "${where[@]}" --worker all
  done
  on_workers "${worker[@]}" setup --folder "$folder" "${source[@]}" ${python:+--python "$python"}
}

train() {
  whole_number "$max_restarts" --max-restarts
  workdir >/dev/null
  # The peers of a TPU VM stand in its metadata server, which the training asks only when told to.
  local processes=(--distributed.cluster gcetpu) argument
  for argument in "${training[@]}"; do
    if [[ $argument == --distributed.* ]]; then processes=(); fi
  done
  on_workers "${worker[@]}" start --folder "$folder" --max-restarts "$max_restarts" --restart-on "$restart_on" \
    -- "${training[@]}" ${processes[@]+"${processes[@]}"}
}

status() {
  if [[ $capacity ]]; then
    run "${tpus[@]}" queued-resources describe "$name" "${where[@]}" --format 'value(state.state)'
  fi
  run "${tpus[@]}" tpu-vm describe "$name" "${where[@]}" --format 'value(state)'
  on_workers "${worker[@]}" status --folder "$folder"
}

need gcloud 'install the Google Cloud CLI'
case $action in
  create) create ;;
  setup) setup ;;
  run) train ;;
  status) status ;;
  stop) on_workers "${worker[@]}" stop --folder "$folder" ;;
  exec)
    ((${#training[@]})) || die 'exec needs a command after --'
    on_workers "${training[@]}"
    ;;
  delete)
    # --force takes the node of the queued resource too, whatever state it is in.
    if [[ $capacity ]]; then
      run "${tpus[@]}" queued-resources delete "$name" --force "${where[@]}"
    else
      run "${tpus[@]}" tpu-vm delete "$name" "${where[@]}"
    fi
    ;;
esac
