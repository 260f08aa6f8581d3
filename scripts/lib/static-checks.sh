# Sourced by scripts/check and scripts/test, with Node 24 first on PATH.

heading() { printf '\n== %s\n' "$1"; }

# Runs every check and leaves in `failed_checks` the names of those that found something.
run_static_checks() {
  failed_checks=()
  static_check types tsc
  static_check lint oxlint --type-aware
  static_check format oxfmt --check .
  static_check unused knip
}

static_check() {
  local name=$1
  shift
  heading "$name ($*)"
  "$@" </dev/null || failed_checks+=("$name")
}
