# shellcheck shell=bash
# Sourced by the launch scripts: quoting, printing or running commands, errors, the training's own arguments.
set -euo pipefail

dry_run=false
action=''
extra=()    # values of --extra, for the tool that a script calls
training=() # the arguments after --

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# The comment block at the top of the calling script is its help text.
usage() {
  sed -n '2,/^$/{/^#/{s/^# \{0,1\}//;p;};}' "$0"
}

# Prints the arguments as one line that any POSIX shell reads back as the same arguments.
quoted() {
  local argument separator=''
  for argument; do
    if [[ $argument == '' || $argument == *[!A-Za-z0-9_@%+=:,./-]* ]]; then
      argument="'${argument//"'"/"'\\''"}'"
    fi
    printf '%s%s' "$separator" "$argument"
    separator=' '
  done
  printf '\n'
}

need() {
  $dry_run || command -v "$1" >/dev/null || {
    printf 'error: %s is not on PATH; %s\n' "$1" "$2" >&2
    exit 127
  }
}

# Runs a command, or prints it under --dry-run.
run() {
  if $dry_run; then quoted "$@"; else "$@"; fi
}

# require VALUE OPTION: an option that must have been given.
require() {
  [[ $1 ]] || die "$2 is missing (--help explains the options)"
}

# What a script defines: `option NAME VALUE` and, if it has any, `flag NAME`; status 1 if there is none of that name.
flag() {
  return 1
}

# parse "ACTION ..." "$@": reads options up to --, and one of the actions, in any order.
parse() {
  local actions=$1
  shift
  while (($#)); do
    case $1 in
      --help | -h) usage && exit ;;
      --dry-run) dry_run=true ;;
      --extra=*) extra+=("${1#*=}") ;;
      --) shift && training=("$@") && break ;;
      -*)
        if ! flag "$1"; then
          [[ $1 == --extra ]] || (option "$1" '') || die "$1: unknown option (--help lists them)"
          (($# > 1)) && [[ $2 != -- ]] || die "$1 needs a value"
          if [[ $1 == --extra ]]; then extra+=("$2"); else option "$1" "$2"; fi
          shift
        fi
        ;;
      *)
        [[ $actions ]] || die "$1: neither an option nor its value (--help lists them)"
        [[ ! $action ]] || die "$1: there is an action already, $action"
        action=$1
        ;;
    esac
    shift
  done
  [[ ! $actions || $action && " $actions " == *" $action "* ]] || die "'$action': must be one of ${actions// /, }"
}

whole_number() {
  [[ $1 =~ ^[0-9]+$ ]] || die "$2 $1: must be a whole number"
}

# Prints the training's --workdir; it must be given, absolute and thereby the same folder for every process.
workdir() {
  local folder='' i argument
  for ((i = 0; i < ${#training[@]}; i++)); do
    argument=${training[i]}
    case $argument in
      *$'\n'*) die "$(printf %q "$argument"): a training argument with a line break does not survive every launcher" ;;
      --workdir) folder=${training[i + 1]-} ;;
      --workdir=*) folder=${argument#*=} ;;
    esac
  done
  [[ $folder ]] || die 'the training arguments (after --) need --workdir, a folder on storage that all workers share'
  [[ $folder == /* ]] || die "--workdir $folder: must be an absolute path, on storage that all workers share"
  printf '%s' "$folder"
}
