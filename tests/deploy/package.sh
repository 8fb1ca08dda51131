# shellcheck shell=bash
# The Debian package: what it holds, and its life in a copy of this system. To be sourced.

# Of the unoptimised program: it is about the package.
package() {
    [ ! -e "$work/outbox-relay.deb" ] || return 0
    cargo build --locked --bin outbox-relay &&
        cargo deb --locked --profile dev --no-build --no-strip --output "$work/outbox-relay.deb"
}

package_contents() {
    package || return
    local file
    dpkg-deb --info "$work/outbox-relay.deb"
    dpkg-deb --contents "$work/outbox-relay.deb" | tee "$work/deb-contents"
    for file in usr/bin/outbox-relay usr/lib/systemd/system/outbox-relay.service etc/outbox-relay/outbox-relay.env; do
        grep -q " \./$file\$" "$work/deb-contents" || { echo "the package has no $file"; return 1; }
    done
    dpkg-deb --info "$work/outbox-relay.deb" conffiles | grep -qx /etc/outbox-relay/outbox-relay.env || { echo "its settings are no conffile"; return 1; }
    # The C library's dependency comes from what the program links to.
    dpkg-deb --field "$work/outbox-relay.deb" Depends | grep libc6
}

# This system's files beneath, and a memory disk above that takes every change: nothing of it stays.
package_life() {
    package || return
    [ "$(id -u)" = 0 ] || { echo "needs root"; return 77; }
    mkdir -p "$work/copy"
    in_copy true || { echo "no overlay file system here"; return 77; }
    in_copy sh -s "$(free_port)" <tests/deploy/package-life.sh
}

# in_copy COMMAND...: in a copy of its own each time.
in_copy() {
    # shellcheck disable=SC2016 # of the inner shell
    unshare --mount --propagation private sh -ec 'mount -t tmpfs tmpfs "$0"
        mkdir "$0/upper" "$0/work" "$0/root"
        mount -t overlay overlay -o "lowerdir=/,upperdir=$0/upper,workdir=$0/work" "$0/root"
        for mounted in proc dev; do mount --rbind "/$mounted" "$0/root/$mounted"; done
        cp "$1" "$0/root/outbox-relay.deb"
        root=$0
        shift
        exec chroot "$root/root" "$@"' "$work/copy" "$work/outbox-relay.deb" "$@"
}
