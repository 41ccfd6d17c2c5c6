#!/usr/bin/env bash
# What launch/tpu_vm.sh runs on every worker of a TPU VM; it is copied there and needs nothing beside it.
#
#   tpu_worker.sh setup  --folder F (--archive A | --repository URL --revision REV) [--python PYTHON]
#   tpu_worker.sh start  --folder F --max-restarts N --restart-on CODES -- TRAINING ARGUMENTS
#   tpu_worker.sh status --folder F
#   tpu_worker.sh stop   --folder F
#
# F/source is the project, F/venv its environment, F/run the pid, command, exit status and log of the training.
set -euo pipefail

die() {
  printf 'error: %s: %s\n' "$(uname -n)" "$*" >&2
  exit 2
}

action=${1-} folder='' archive='' repository='' revision='' python='' max_restarts=0 restart_on=130,75
shift || true
while (($#)); do
  case $1 in
    --) shift && break ;;
    --folder) folder=$2 ;;
    --archive) archive=$2 ;;
    --repository) repository=$2 ;;
    --revision) revision=$2 ;;
    --python) python=$2 ;;
    --max-restarts) max_restarts=$2 ;;
    --restart-on) restart_on=$2 ;;
    *) die "$1: unknown option" ;;
  esac
  shift 2
done
[[ $folder ]] || die '--folder is missing'
script=$(realpath "$0")
archive=${archive:+$(realpath "$archive")}
mkdir -p "$folder/run"
cd "$folder"

# The pid of the running loop. A pid file alone may be of before a reboot.
running() {
  local pid
  pid=$(cat run/pid 2>/dev/null) || return
  [[ $(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") == *"$script loop "* ]] && echo "$pid"
}

new_enough() {
  command -v "$1" >/dev/null && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))'
}

make_environment() {
  local candidate
  if [[ $python ]]; then
    new_enough "$python" || die "--python $python: must be Python 3.11 or newer"
  else
    for candidate in python3.13 python3.12 python3.11 python3; do
      if new_enough "$candidate"; then python=$candidate && break; fi
    done
  fi
  if [[ $python ]]; then
    "$python" -m venv venv
  else # images of Ubuntu 22.04 have Python 3.10
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --seed --python 3.11 venv
  fi
}

setup() {
  if running >/dev/null; then die 'a training is running; stop it first'; fi
  rm -rf source.new
  if [[ $repository ]]; then
    git clone --quiet "$repository" source.new
    git -C source.new checkout --quiet --detach "$revision"
  else
    mkdir source.new
    tar -xzf "$archive" -C source.new
  fi
  rm -rf source
  mv source.new source
  new_enough venv/bin/python || { rm -rf venv && make_environment; }
  venv/bin/python -m pip install --quiet -c source/constraints.txt --editable './source[tpu]'
  echo "$(uname -n): ready, $(venv/bin/python --version)"
}

start() {
  local pid
  printf '%q ' "$@" >run/command.new
  if pid=$(running); then
    cmp --silent run/command run/command.new || die "another training is running (pid $pid): $(cat run/command)"
    echo "$(uname -n): already running (pid $pid)"
    return
  fi
  mv run/command.new run/command
  rm -f run/exit_status
  nohup bash "$script" loop --folder "$PWD" --max-restarts "$max_restarts" --restart-on "$restart_on" -- "$@" \
    >>run/train.log 2>&1 </dev/null &
  echo $! >run/pid
  echo "$(uname -n): started (pid $!), log in $PWD/run/train.log"
}

# Runs the training again while it ends with a code of --restart-on. SIGTERM is passed on to it and ends the loop too.
loop() {
  local restarts=0 status again
  stopping=false child=''
  trap 'stopping=true interrupted=true; kill -TERM "$child" 2>/dev/null || true' TERM
  cd source # presets are named relative to the project
  while true; do
    interrupted=false
    ../venv/bin/python -m genaffect_jax.train "$@" &
    child=$!
    status=0
    wait "$child" || status=$?
    while $interrupted; do # `wait` came back because of the signal; 127: the training had ended by then
      interrupted=false again=0
      wait "$child" 2>/dev/null || again=$?
      ((again == 127)) || status=$again
    done
    echo "training ended with status $status"
    if $stopping || [[ ,$restart_on, != *",$status,"* ]] || ((restarts >= max_restarts)); then break; fi
    restarts=$((restarts + 1))
    echo "restart $restarts of at most $max_restarts"
  done
  echo "$status" >../run/exit_status
  exit "$status"
}

stop() {
  local pid
  if pid=$(running); then
    kill -TERM "$pid"
    while running >/dev/null; do sleep 0.2; done
  fi
  status
}

status() {
  local pid
  if pid=$(running); then
    echo "$(uname -n): running (pid $pid)"
  elif [[ -e run/exit_status ]]; then
    echo "$(uname -n): ended with status $(cat run/exit_status)"
  else
    echo "$(uname -n): not running"
  fi
  if [[ -e run/train.log ]]; then tail -n 5 run/train.log; fi
}

case $action in
  setup | start | loop | status | stop) "$action" "$@" ;;
  *) die "'$action': must be one of setup, start, status, stop" ;;
esac
