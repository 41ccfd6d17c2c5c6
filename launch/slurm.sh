#!/usr/bin/env bash
# Submit a training to SLURM: one process per GPU, requeued with the same command after an interruption.
#
#   launch/slurm.sh --nodes 2 --gpus 8 [--time 24:00:00] [...] -- --config C --workdir /shared/W [...]
#
# --dry-run            print the exact command, run nothing
# --nodes N            number of nodes (default 1)
# --gpus N             GPUs, and processes, per node (default 8)
# --cpus N             CPU cores per process (default: the cluster's)
# --time T             time limit of one start; 120 to 180 seconds before its end the training saves and is queued again
# --name N             job name (default genaffect_jax)
# --max-restarts N     how often the job is queued again (default 20)
# --python PYTHON      Python with the project, on shared storage (default .venv/bin/python; `python` with --apptainer)
# --apptainer IMAGE    run in an Apptainer image, made from launch/Containerfile
# --bind DIR           folder that the image sees too; may be repeated (the run folder always is)
# --extra OPTION       given to sbatch as it is; may be repeated (--extra=--account=A)
#
# --workdir must lie on storage that all nodes share. Run it in the project's folder: the job starts where it was
# submitted, and writes slurm-NAME-ID.out there. `squeue` shows the job, `scancel ID` ends it: it is not queued again.

# shellcheck source=launch/commands.sh
source "$(dirname "$0")/commands.sh"

nodes=1 gpus=8 name=genaffect_jax max_restarts=20 resources=() python='' image='' binds=()

option() {
  case $1 in
    --nodes) nodes=$2 ;;
    --gpus) gpus=$2 ;;
    --cpus) resources+=(--cpus-per-task "$2") ;;
    --time) resources+=(--time "$2") ;;
    --name) name=$2 ;;
    --max-restarts) max_restarts=$2 ;;
    --python) python=$2 ;;
    --apptainer) image=$2 ;;
    --bind) binds+=(--bind "$2") ;;
    *) return 1 ;;
  esac
}

parse "" "$@"
whole_number "$nodes" --nodes
whole_number "$gpus" --gpus
whole_number "$max_restarts" --max-restarts
folder=$(workdir)
need sbatch 'submit from a login node of the cluster'

command=("${python:-.venv/bin/python}")
if [[ $image ]]; then
  command=(apptainer exec --nv --bind "$folder" ${binds[@]+"${binds[@]}"} "$image" "${python:-python}")
  if ! $dry_run; then mkdir -p "$folder"; fi # apptainer binds only what is there
elif ((${#binds[@]})); then
  die '--bind is of use with --apptainer only'
fi

# All processes of a node must see all of its GPUs, because jax.distributed gives each the GPU of its SLURM_LOCALID:
# hence --gpus-per-node, not --gpus-per-task.
run sbatch --job-name "$name" --nodes "$nodes" --ntasks-per-node "$gpus" --gpus-per-node "$gpus" \
  ${resources[@]+"${resources[@]}"} ${extra[@]+"${extra[@]}"} "$(dirname "$0")/slurm.sbatch" "$max_restarts" \
  "${command[@]}" -m genaffect_jax.train "${training[@]}"
