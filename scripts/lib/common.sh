# shellcheck shell=bash
# What the scripts share; sourced by bash with `set -euo pipefail`.

say() { printf '%s: %s\n' "${0##*/}" "$*"; }

fail() {  # the user has to do something first
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 2
}

# Run a command as root.  A password is asked for only where somebody can type one.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif ! command -v sudo >/dev/null; then
        return 126
    elif [ -t 0 ] && [ -t 2 ]; then
        sudo "$@"
    else
        sudo -n "$@"
    fi
}

may_become_root() {
    [ "$(id -u)" = 0 ] && return
    command -v sudo >/dev/null || return
    { [ -t 0 ] && [ -t 2 ]; } || sudo -n true 2>/dev/null
}

# Install Debian packages, without what they only recommend.
install_packages() {
    local command=(apt-get -y -q -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@")
    command -v apt-get >/dev/null ||
        fail "please install what Debian calls $* (this system has no apt-get)"
    may_become_root ||
        fail "root is needed to install $*. Run once: sudo apt-get install --no-install-recommends $*"
    say "installing Debian packages: $*"
    # Lists that are a little old, or another vendor's source that is broken, may still do.
    as_root apt-get -q -o DPkg::Lock::Timeout=300 update >/dev/null ||
        say "apt-get update failed; going on"
    as_root env DEBIAN_FRONTEND=noninteractive "${command[@]}" >/dev/null </dev/null ||
        fail "apt-get could not install $*"
}

# The newest Python that can make a virtual environment; nothing when there is none.
newest_python() {
    local name
    for name in python3.14 python3.13 python3.12 python3.11 python3 /usr/bin/python3; do
        if "$name" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
            >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
    done
}
