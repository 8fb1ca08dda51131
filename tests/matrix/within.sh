#!/usr/bin/env bash
# Runs a program in the release of Debian that is in a folder: within.sh FOLDER PROGRAM [ARGUMENT...]
#
# Where the program is (the target folder, if it is a test), the working folder and /tmp are the same in there. Mounts and
# processes are those of a namespace of its own, and end with it.
set -euo pipefail

enter() {
    local tree=$1 folder status=0 others
    shift
    mount -t proc proc "$tree/proc"
    mount --rbind /dev "$tree/dev"
    mount --bind /tmp "$tree/tmp"
    # The folder of deps/, in which its other programs are as well.
    for folder in "$PWD" "${1%/deps/*}"; do
        [ -d "$folder" ] || continue
        mkdir -p "$tree$folder"
        mount --bind "$folder" "$tree$folder"
    done
    # Not `exec`: as the first process of its namespace this shell collects what its descendants leave behind.
    chroot "$tree" env --chdir="$PWD" --unset=LD_LIBRARY_PATH --unset=TMPDIR HOME=/root \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@" || status=$?
    # The guards of the test's servers end them and remove their folders, which takes a moment; then the namespace ends.
    for _ in {1..100}; do
        others=("$tree"/proc/[0-9]*)
        ((${#others[@]} > 1)) || break
        sleep 0.1
    done
    exit "$status"
}

if [ "$1" = --entered ]; then
    shift
    enter "$@"
else
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo "--preserve-env=RUST_TEST_THREADS,RUST_BACKTRACE")
    exec "${as_root[@]}" unshare --mount --pid --fork --kill-child "$0" --entered "$@"
fi
