# shellcheck shell=bash
# Makes a folder with a release of Debian and packages in it; to be sourced. Uses `say`, `die` and `as_root` of its caller.

# Does nothing when it is there already. RELEASE FOLDER PACKAGE...
make_tree() {
    local release=$1 tree=$2 log
    shift 2
    [ -e "$tree/.complete" ] && return
    install_packages debootstrap
    say "Fetching $release into $tree (some minutes)"
    # What an earlier run left half done.
    as_root rm -rf "$tree"
    mkdir -p "${tree%/*}"
    log=$tree.log
    if ! { as_root debootstrap --variant=minbase "$release" "$tree" http://deb.debian.org/debian && fill "$tree" "$@"; } >"$log" 2>&1; then
        tail -n 30 "$log" >&2
        die "fetching $release failed; all it said is in $log"
    fi
    as_root touch "$tree/.complete"
}

fill() {
    local tree=$1 clusters=$1/etc/postgresql-common/createcluster.d
    shift
    # As for this system: no service is started, no cluster made.
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$tree/usr/sbin/policy-rc.d" >/dev/null
    as_root chmod 755 "$tree/usr/sbin/policy-rc.d"
    as_root mkdir -p "$clusters"
    echo 'create_main_cluster = false' | as_root tee "$clusters/outbox-relay.conf" >/dev/null
    # Erlang's nodes are called …@localhost.
    echo '127.0.0.1 localhost' | as_root tee "$tree/etc/hosts" >/dev/null
    as_root "${BASH_SOURCE[0]%/*}/within.sh" "$tree" /usr/bin/env DEBIAN_FRONTEND=noninteractive \
        apt-get -q -y -o Dpkg::Options::=--force-unsafe-io --no-install-recommends install "$@" &&
        as_root chroot "$tree" apt-get clean
}

# The version that upstream gave the package, empty when it is not there; the name may have wildcards.
version() {
    dpkg-query --admindir="$1/var/lib/dpkg" --show --showformat='${source:Upstream-Version}\n' "$2" 2>/dev/null |
        sed -n '/./ { s/[+~].*//p; t; p }' | head -n 1
}
