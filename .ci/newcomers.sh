#!/usr/bin/env bash
# 'make demo' and 'make test' as newcomers run them, as far as the folder and the user matter: as root in a folder
# that only root may enter (/root of a fresh server is one), and as an ordinary user. Each in a copy of this checkout
# that shares its installed packages. Takes less than a minute. Not here: what the tests themselves say.
#
#   .ci/newcomers.sh         both, or only the ordinary user where this is not root
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

ORDINARY_USER=nobody
AS_ORDINARY_USER=(setpriv --reuid="$ORDINARY_USER" --regid="$(id -g "$ORDINARY_USER")" --clear-groups --)
SERVERS_TIMEOUT_S=90
STOP_TIMEOUT_S=40
# Needs the database server and the package, and nothing else. A page of the docs names it, and a test of that page has
# its name among its parameters.
ONE_TEST=test_every_file_is_applied_in_order_and_then_never_again
# The demo says so when its servers run, the schema is there and messages are sent: what comes after that starts
# as the user who typed it, and touches no other user's files.
STARTED="hourly readings of a real water flow"
STOPPED="the database stays in"

FOLDERS=()
remove_folders() { rm -rf "${FOLDERS[@]:-}"; }
trap remove_folders EXIT

# copy_tree FROM TO: by hard links where both are on one file system.
copy_tree() { cp -al "$1" "$2" 2>/dev/null || { rm -rf "$2" && cp -a "$1" "$2"; }; }

# copy_checkout FOLDER: the files as they are now, and the environment.
copy_checkout() {
    local folder=$1
    (cd "$ROOT_DIR" && git ls-files -z --cached --others --exclude-standard |
        xargs -0 cp --parents --target-directory="$folder")
    copy_tree "$ROOT_DIR/.venv" "$folder/.venv"
    # Commands and the link to the checkout name the place; sed writes a new file, so that the old one stays.
    grep -rlIF "$ROOT_DIR" "$folder"/.venv/bin "$folder"/.venv/pyvenv.cfg \
        "$folder"/.venv/lib/*/site-packages/__editable__* | xargs -r sed -i "s|$ROOT_DIR|$folder|g"
    rm -f "$folder/.venv/.installed"
    touch "$folder/.venv/.installed"
}

# own_python FOLDER: the interpreter into the folder as well, for a user who may not enter the one that holds it.
own_python() {
    local folder=$1 base
    base=$("$ROOT_DIR/.venv/bin/python" -c 'import sys; print(sys.base_prefix)')
    "${AS_ORDINARY_USER[@]}" test -x "$base/bin" && return
    copy_tree "$base" "$folder/python"
    sed -i "s|^home = .*|home = $folder/python/bin|" "$folder/.venv/pyvenv.cfg"
    export LD_LIBRARY_PATH=$folder/python/lib # where its own library is, if it was built with one
    ln -sf "$folder/python/bin/$(basename "$(readlink -f "$ROOT_DIR/.venv/bin/python")")" "$folder/.venv/bin/python3"
}

# wait_for FILE TEXT SECONDS: until the demo, the last job of this shell, has said it.
wait_for() {
    local deadline=$((SECONDS + $3))
    until grep -qF -- "$2" "$1"; do
        if [ $SECONDS -ge $deadline ] || ! kill -0 $! 2>/dev/null; then
            tail -20 "$1" >&2
            die "'make demo' ended, or did not say '$2' within $3 s"
        fi
        sleep 0.2
    done
}

# try FOLDER PREFIX...: both commands in the folder; the prefix makes them another user's.
try() {
    local folder=$1
    shift
    (
        cd "$folder"
        "$@" env HOME="$folder" make demo >"$folder/demo.out" 2>&1 &
        wait_for "$folder/demo.out" "$STARTED" "$SERVERS_TIMEOUT_S"
        kill -TERM "$(cat .state/lock)"
        wait_for "$folder/demo.out" "$STOPPED" "$STOP_TIMEOUT_S"
        wait
        "$@" env HOME="$folder" PYTEST_ADDOPTS="-k '$ONE_TEST and not test_seeds_page'" \
            make test >"$folder/test.out" 2>&1 || {
            tail -20 "$folder/test.out" >&2
            die "'make test' failed"
        }
        grep -q "1 passed" "$folder/test.out" || die "'make test' did not run $ONE_TEST"
    )
}

# make_folder MODE: sets FOLDER, below a folder of that mode.
make_folder() {
    local above
    above=$(mktemp -d)
    FOLDERS+=("$above")
    chmod "$1" "$above"
    FOLDER=$above/clone
    mkdir "$FOLDER"
}

if [ "$(id -u)" = 0 ]; then
    make_folder 0700
    copy_checkout "$FOLDER"
    try "$FOLDER"
    say "as root in a folder that only root may enter: demo and test run"
    make_folder 0755
    copy_checkout "$FOLDER"
    own_python "$FOLDER"
    # Not what is installed: those files are also this checkout's.
    find "$FOLDER" \( -path "$FOLDER/.venv" -o -path "$FOLDER/python" \) -prune -o \
        -exec chown -h "$ORDINARY_USER" {} +
    try "$FOLDER" "${AS_ORDINARY_USER[@]}"
else
    make_folder 0700
    copy_checkout "$FOLDER"
    try "$FOLDER"
fi
say "as an ordinary user: demo and test run"
