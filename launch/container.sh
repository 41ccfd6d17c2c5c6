#!/usr/bin/env bash
# Build the container image of launch/Containerfile, run a training in it, or push it to a registry.
#
#   launch/container.sh build --tag TAG [--platform tpu | cuda | cpu] [--uid UID]
#   launch/container.sh run   --tag TAG [--platform P] --mount DIR [...] -- --config C --workdir DIR/W [...]
#   launch/container.sh push  --tag TAG
#
# --dry-run            print the exact command, run nothing
# --tag TAG            name of the image, e.g. REGISTRY/genaffect_jax:cuda
# --platform P         tpu, cuda or cpu (default cpu); must be the same for build and run
# --uid UID            build: user of the image (default 1000; 0 is root, see launch/Containerfile)
# --mount DIR          run: a folder that the container sees under the same name, to write to; may be repeated
# --engine E           docker or podman (default: the first of them on PATH)
# --extra OPTION       given to the engine as it is; may be repeated (--extra=--memory=64g)
#
# `run` stays in the foreground and uses the caller's user and group. `docker stop NAME` (or Ctrl-C) finishes the step
# and saves; it exits with the training's own status, and the same command continues.

# shellcheck source=launch/commands.sh
source "$(dirname "$0")/commands.sh"
root=$(cd "$(dirname "$0")/.." && pwd)

tag='' platform=cpu uid=1000 mounts=() engine=''

option() {
  case $1 in
    --tag) tag=$2 ;;
    --platform) platform=$2 ;;
    --uid) uid=$2 ;;
    --mount) mounts+=("$2") ;;
    --engine) engine=$2 ;;
    *) return 1 ;;
  esac
}

parse "build run push" "$@"
require "$tag" --tag
case $platform in tpu | cuda | cpu) ;; *) die "--platform $platform: must be tpu, cuda or cpu" ;; esac
if [[ ! $engine ]]; then
  engine=docker
  if ! command -v docker >/dev/null && command -v podman >/dev/null; then engine=podman; fi
fi
case $engine in docker | podman) ;; *) die "--engine $engine: must be docker or podman" ;; esac

build() {
  whole_number "$uid" --uid
  local name=$platform
  [[ $platform == cpu ]] && name=''
  run "$engine" build --file "$root/launch/Containerfile" --build-arg "EXTRA=$name" --build-arg "USER_ID=$uid" \
    ${extra[@]+"${extra[@]}"} --tag "$tag" "$root"
}

train() {
  local folder mount options=() inside=false
  folder=$(workdir)
  for mount in ${mounts[@]+"${mounts[@]}"}; do
    [[ $mount == /* && $mount != *:* ]] || die "--mount $mount: must be an absolute path without a colon"
    if [[ $folder/ == "${mount%/}"/* ]]; then inside=true; fi
    options+=(--volume "$mount:$mount")
  done
  $inside || die "--workdir $folder: lies in no --mount, so it would be lost with the container"
  case $platform-$engine in
    cuda-docker) options+=(--gpus all) ;;
    cuda-podman) options+=(--device nvidia.com/gpu=all) ;;
    tpu-*) options+=(--privileged --network host) ;;
  esac
  # Rootless podman maps the caller to root of the container unless told to keep it.
  if [[ $engine == podman ]] && ((EUID)); then options+=(--userns keep-id); fi
  # --init passes signals on; 64 MB of shared memory, the engines' default, are too few for the input workers.
  run "$engine" run --rm --init --stop-timeout 120 --shm-size 8g --user "$(id -u):$(id -g)" "${options[@]}" \
    ${extra[@]+"${extra[@]}"} "$tag" python -m genaffect_jax.train "${training[@]}"
}

need "$engine" 'install Docker or Podman'
case $action in
  build) build ;;
  run) train ;;
  push) run "$engine" push ${extra[@]+"${extra[@]}"} "$tag" ;;
esac
