# shellcheck shell=bash
# Installs Debian packages for the quickstart and the tests; to be sourced. Uses `say` and `die` of its caller.
#
# Only the programs are wanted. No service is started, now or at the next boot: quickstart and tests run private
# servers in temporary folders.

# Installs those of the packages that are missing.
install_packages() {
    local package log missing=()
    for package in "$@"; do
        is_installed "$package" || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || die "this is not a Debian system; please install: ${missing[*]}"
    say "Installing from Debian, without starting any service: ${missing[*]} (a minute or two)"
    # Asks for a password here, where it can be seen.
    as_root true
    log=$(mktemp)
    if ! (apt_install "${missing[@]}") </dev/null >"$log" 2>&1; then
        tail -n 30 "$log" >&2
        die "apt-get failed; all it said is in $log"
    fi
    rm -f "$log"
}

is_installed() {
    [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# In a subshell, whose end undoes what is changed meanwhile.
apt_install() {
    local options=(-q -y -o DPkg::Lock::Timeout=300 --no-install-recommends)
    units_before=$(enabled_units)
    trap undo EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    deny_services && deny_cluster || return
    # The lists of a fresh system are empty, those of an old one name packages that are gone.
    as_root env DEBIAN_FRONTEND=noninteractive apt-get "${options[@]}" update || return
    as_root env DEBIAN_FRONTEND=noninteractive apt-get "${options[@]}" install "$@"
}

policy=/usr/sbin/policy-rc.d
aside=$policy.before-outbox-relay
cluster=/etc/postgresql-common/createcluster.d/outbox-relay.conf

# Debian's switch for "start no service", asked by the packages' scripts.
deny_services() {
    local answer=0
    if [ -e "$policy" ] && ! grep 'of outbox-relay' "$policy" >/dev/null; then
        # Container images have a policy already, which denies everything.
        as_root "$policy" rabbitmq-server start >/dev/null 2>&1 || answer=$?
        [ "$answer" = 101 ] && return
        as_root mv "$policy" "$aside" || return
    fi
    printf '%s\n' '#!/bin/sh' '# Temporary, of outbox-relay: no service is started while it installs packages.' 'exit 101' |
        as_root tee "$policy" >/dev/null && as_root chmod 755 "$policy"
}

# PostgreSQL's package would make a database cluster for the whole system.
deny_cluster() {
    as_root mkdir -p "${cluster%/*}" && echo 'create_main_cluster = false' | as_root tee "$cluster" >/dev/null
}

undo() {
    local unit
    if grep 'of outbox-relay' "$policy" >/dev/null 2>&1; then
        as_root rm -f "$policy"
    fi
    if [ -e "$aside" ]; then
        as_root mv "$aside" "$policy"
    fi
    as_root rm -f "$cluster"
    # Removed only where nothing else is in them.
    as_root rmdir --ignore-fail-on-non-empty "${cluster%/*}" 2>/dev/null || true
    as_root rmdir --ignore-fail-on-non-empty /etc/postgresql-common 2>/dev/null || true
    # New packages have enabled their services for the next boot. Those enabled before stay.
    for unit in $(comm -13 <(echo "$units_before") <(enabled_units)); do
        as_root systemctl disable "$unit" || true
    done
}

enabled_units() {
    command -v systemctl >/dev/null || return 0
    systemctl list-unit-files --state=enabled --no-legend |
        awk '$1 ~ /^(rabbitmq-server|epmd|postgresql|mariadb)/ { print $1 }' | sort
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "installing packages needs root or sudo"
    fi
}
