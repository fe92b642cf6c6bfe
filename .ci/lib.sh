# shellcheck shell=bash disable=SC2034
# Shell functions that kafka.sh and timescaledb.sh share. Not here: anything about one server.

ROOT_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
STATE_DIR=${CI_STATE_DIR:-$ROOT_DIR/.state/ci}

say() { echo "$(basename "$0"): $*" >&2; }

die() {
    say "$*"
    exit 1
}

# as_root COMMAND...: chroot and apt-get need root.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo -n "$@" || die "'$*' needs root: run as root, or allow sudo without a password"
    fi
}

# apt_install COMMAND PACKAGE...: installs the packages unless the command is there.
apt_install() {
    local command=$1
    shift
    command -v "$command" >/dev/null || [ -x "/usr/sbin/$command" ] && return
    say "installing $*"
    as_root apt-get update -qq >&2
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

# alive PID_FILE WORD: whether that process runs and is still ours (a pid can be given to another program).
alive() {
    local pid
    [ -s "$1" ] || return 1
    pid=$(head -1 "$1")
    [ -r "/proc/$pid/cmdline" ] && tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q -- "$2"
}

# port_taken PORT: whether something listens there on the loopback address.
port_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
