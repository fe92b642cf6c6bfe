#!/usr/bin/env bash
# TimescaleDB itself (Apache licence), for the tests: Debian's package on PostgreSQL 17.
#
#   eval "$(.ci/timescaledb.sh start)"   starts it unless it runs; prints export TEST_DB_HOST=… PORT, USER, PASSWORD
#   .ci/timescaledb.sh stop              stops it; its data stays
#   .ci/timescaledb.sh clean             stops it and removes its data
#
# Debian 13 has the package. On an older Debian, a Debian 13 tree is unpacked into the state folder once (about
# a minute) and the server runs in it through chroot, with root's rights for that alone. TEST_TIMESCALEDB_PORT
# chooses the port (25432), DEBIAN_MIRROR where packages come from (else: where this machine's come from).
# The role is no superuser: it may create databases and roles, and the extension because that is a trusted one.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

SUITE=trixie
PACKAGE=postgresql-17-timescaledb
BIN_DIR=/usr/lib/postgresql/17/bin
HOME_DIR=$STATE_DIR/timescaledb
PORT=${TEST_TIMESCALEDB_PORT:-25432}
ROLE=analytics_ci
PASSWORD_FILE=$HOME_DIR/password
START_TIMEOUT_S=60
# No background jobs: nothing here tests one, and the scheduler that TimescaleDB starts for each database belongs to
# a superuser, so that the tests' role may not end it when it drops the database.
NO_JOBS="-c timescaledb.max_background_workers=0 -c timescaledb.telemetry_level=off"

if [ -f "/usr/share/postgresql/17/extension/timescaledb.control" ] ||
    grep -qs "VERSION_CODENAME=$SUITE" /etc/os-release; then
    TREE=            # the package of this machine
    DATA_DIR=$HOME_DIR/data
else
    TREE=$HOME_DIR/tree
    DATA_DIR=/var/lib/postgresql/ci
fi
PID_FILE=$TREE$DATA_DIR/postmaster.pid
ADMIN=postgres       # the superuser, reached through the socket as the system's user of that name
[ -z "$TREE" ] && [ "$(id -u)" != 0 ] && ADMIN=$(id -un)

# Where this machine's own packages of Debian come from; debootstrap has to be told.
mirror() {
    local uri=${DEBIAN_MIRROR:-}
    if [ -z "$uri" ]; then
        uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -1)
    fi
    if [ -z "$uri" ]; then
        as_root apt-get update -qq >&2
        uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -1)
    fi
    [ -n "$uri" ] || die "found no Debian mirror in this machine's apt sources: name one in DEBIAN_MIRROR"
    echo "$uri"
}

install_here() {
    [ -f "/usr/share/postgresql/17/extension/timescaledb.control" ] && return
    say "installing $PACKAGE"
    as_root apt-get update -qq >&2
    # Without the cluster that the package would create and start on the default port.
    as_root mkdir -p /etc/postgresql-common/createcluster.d
    echo 'create_main_cluster = false' |
        as_root tee /etc/postgresql-common/createcluster.d/no-main.conf >/dev/null
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$PACKAGE" >&2
}

unpack_tree() {
    [ -f "$TREE/.complete" ] && return
    apt_install debootstrap debootstrap debian-archive-keyring
    say "unpacking Debian $SUITE with $PACKAGE (once)"
    as_root rm -rf "$TREE"
    mkdir -p "$HOME_DIR"
    as_root env PATH="$PATH:/usr/sbin:/sbin" debootstrap --variant=minbase \
        --include="$PACKAGE" "$SUITE" "$TREE" "$(mirror)" >"$HOME_DIR/debootstrap.log" 2>&1 ||
        {
            tail -20 "$HOME_DIR/debootstrap.log" >&2
            die "debootstrap failed; its whole log: $HOME_DIR/debootstrap.log"
        }
    as_root touch "$TREE/.complete"
}

# pg COMMAND...: a server program as the user postgres, where the server lives.
pg() {
    if [ -n "$TREE" ]; then
        as_root env -i LC_ALL=C.UTF-8 PATH="$BIN_DIR:/usr/sbin:/usr/bin:/sbin:/bin" \
            "$(PATH=$PATH:/usr/sbin command -v chroot)" --userspec=postgres:postgres "$TREE" "$@"
    elif [ "$(id -u)" = 0 ]; then
        (cd / && setpriv --reuid=postgres --regid=postgres --init-groups env LC_ALL=C.UTF-8 PATH="$BIN_DIR:$PATH" "$@")
    else
        env LC_ALL=C.UTF-8 PATH="$BIN_DIR:$PATH" "$@"
    fi
}

create_cluster() {
    as_root test -f "$TREE$DATA_DIR/PG_VERSION" && return
    say "creating the cluster"
    if [ -z "$TREE" ]; then
        mkdir -p "$DATA_DIR"
        [ "$(id -u)" = 0 ] && chown postgres: "$DATA_DIR"
    fi
    (umask 077 && head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$PASSWORD_FILE")
    pg initdb -D "$DATA_DIR" --encoding=UTF8 --locale=C.UTF-8 --username="$ADMIN" \
        --auth-local=peer --auth-host=scram-sha-256 >/dev/null
    # As analytics_pipeline/embedded/postgres.py has it, fully durable: the benchmarks compare the two.
    as_root tee -a "$TREE$DATA_DIR/postgresql.conf" >/dev/null <<CONFIG
listen_addresses = '127.0.0.1'
unix_socket_directories = '/tmp'
shared_preload_libraries = 'timescaledb'
timescaledb.license = 'apache'
# A chroot has no /dev/shm of its own.
dynamic_shared_memory_type = sysv
shared_buffers = 512MB
effective_cache_size = 2GB
work_mem = 32MB
maintenance_work_mem = 256MB
max_wal_size = 4GB
min_wal_size = 256MB
checkpoint_timeout = 15min
max_connections = 500
random_page_cost = 1.1
jit = off
max_worker_processes = 24
timezone = 'UTC'
log_timezone = 'UTC'
CONFIG
}

create_role() {
    pg psql -q -h /tmp -p "$PORT" -U "$ADMIN" -v ON_ERROR_STOP=1 -d postgres >&2 <<SQL
DO \$\$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '$ROLE') THEN
        CREATE ROLE $ROLE LOGIN CREATEDB CREATEROLE PASSWORD '$(cat "$PASSWORD_FILE")';
        GRANT pg_monitor, pg_checkpoint TO $ROLE;
    END IF;
END \$\$;
SQL
}

running() { as_root test -f "$PID_FILE" && pg pg_ctl status -D "$DATA_DIR" >/dev/null; }

start() {
    if [ -n "$TREE" ]; then unpack_tree; else install_here; fi
    create_cluster
    if ! running; then
        port_taken "$PORT" && die "port $PORT is taken; choose another with TEST_TIMESCALEDB_PORT"
        # Its own session: a Ctrl-C for the tests is not one for the server, stop ends it.
        pg setsid pg_ctl start -s -w -t "$START_TIMEOUT_S" -D "$DATA_DIR" -o "-p $PORT $NO_JOBS" \
            -l "$DATA_DIR/server.log" </dev/null >&2 || {
            as_root tail -20 "$TREE$DATA_DIR/server.log" >&2
            die "TimescaleDB did not start"
        }
    fi
    create_role
    say "TimescaleDB $(pg psql -h /tmp -p "$PORT" -U "$ADMIN" -d postgres -Atc \
        "SELECT default_version FROM pg_available_extensions WHERE name = 'timescaledb'") is ready on 127.0.0.1:$PORT"
    echo "export TEST_DB_HOST=127.0.0.1"
    echo "export TEST_DB_PORT=$PORT"
    echo "export TEST_DB_USER=$ROLE"
    echo "export TEST_DB_PASSWORD=$(cat "$PASSWORD_FILE")"
}

stop() {
    running || return 0
    pg pg_ctl stop -s -m fast -D "$DATA_DIR" >&2
    say "stopped"
}

case ${1:-} in
    start) start ;;
    stop) stop ;;
    clean) stop && as_root rm -rf "$TREE$DATA_DIR" ;;
    *) die "takes start, stop or clean" ;;
esac
