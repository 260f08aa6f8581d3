# Sourced by the scripts of this folder's parent: puts in place what a fresh machine lacks. Every function may be called
# again and then finds its work done. `repository` is the root of this repository.

NODE_MAJOR=24
# What sandboxes, image builds and base images need; perl-base and util-linux belong to every Debian.
SANDBOX_PACKAGES='mmdebstrap skopeo buildah uidmap bubblewrap runsc zstd nftables iproute2 e2fsprogs ca-certificates curl procps python3 xz-utils'

# Installs the packages of the lock file where node_modules lacks or outlived them, and puts Node 24 first on PATH.
ensure_node_packages() {
  local installed=$repository/node_modules/.package-lock.json
  if [ ! -x "$repository/node_modules/node/bin/node" ] || [ ! -f "$installed" ] || [ "$repository/package-lock.json" -nt "$installed" ]; then
    command -v npm >/dev/null || { echo "npm is needed, with any Node from 20 on (Debian: apt-get install nodejs npm)" >&2; return 1; }
    echo "Installing the Node packages of package-lock.json."
    install_node_packages || { echo "The Node packages could not be installed." >&2; return 1; }
    touch "$installed"
  fi
  export PATH="$repository/node_modules/.bin:$PATH"
  [ "$(node -p 'process.versions.node.split(".")[0]')" -ge "$NODE_MAJOR" ] ||
    { echo "Node $NODE_MAJOR did not come with the packages." >&2; return 1; }
}

# One package has a script that must run: node, which fetches Node 24. With all scripts, npm would also call node-gyp for
# better-sqlite3 (which brings its binaries), and that wants a compiler and Node's headers. npm itself may run on an older
# Node: what it says about that is loud and harmless.
install_node_packages() (
  cd "$repository" &&
    npm ci --ignore-scripts --loglevel=error --no-audit --no-fund </dev/null &&
    npm rebuild node --loglevel=error </dev/null
)

# Installs what is missing of the named Debian packages. Where that is impossible one line says what will not run.
ensure_debian_packages() {
  local missing=() package
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "This is no Debian: image builds and sandboxes run only as far as their tools are installed ($*)."
    return 0
  fi
  for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" != 0 ]; then
    echo "Not root, so these stay missing and what needs them cannot run: ${missing[*]}"
    return 0
  fi
  echo "Installing Debian packages: ${missing[*]}"
  install_debian_packages "${missing[@]}" || echo "Some could not be installed; what needs them cannot run."
}

install_debian_packages() {
  local log failed=0
  log=$(mktemp)
  {
    apt-get update -q </dev/null &&
      DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@" </dev/null ||
      install_one_by_one "$@"
  } >"$log" 2>&1 || { failed=1; grep -E '^(E|W): ' "$log" | head -n 5; }
  rm -f "$log"
  return "$failed"
}

# A release may lack one of them; the others are still worth having.
install_one_by_one() {
  local package failed=0
  for package in "$@"; do
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$package" </dev/null || failed=1
  done
  return "$failed"
}
