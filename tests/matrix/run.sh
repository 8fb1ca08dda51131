#!/usr/bin/env bash
# Runs the suite inside other releases of Debian, with the servers they carry. See usage.
set -euo pipefail

usage() {
    cat <<'END'
Runs the test suite against other versions of the servers: those that other releases of Debian carry, all at once.

    tests/run.sh --matrix [RELEASE...] [-- ARGUMENT...]

    trixie    Debian 13: PostgreSQL 17, MariaDB 11.8, RabbitMQ 4.0, PgBouncer 1.24
    sid       Debian unstable: PostgreSQL 18, MySQL 9, RabbitMQ 4.3, PgBouncer 1.26 (in November 2026)

Both without a RELEASE. The arguments go to `cargo test --test suite`: a test's name, `-- --nocapture`. Needs root or sudo.

The first run fetches each release with debootstrap (some 300 MB) into ~/.cache/outbox-relay/matrix; later ones find it there.
Remove a folder to have a newer one. The tests are built here and run in there (chroot), in a namespace of their own for mounts
and processes: whatever ends the run ends the servers, and no mount is left.

Prints a table at the end, and fails if a test failed. What the tests say is in matrix-RELEASE.log in the target folder.
END
}

# As in tests/run.sh, but for the compiler.
common=(postgresql pgbouncer rabbitmq-server erlang-base faketime procps python3 zstd)
declare -A packages=(
    [trixie]="${common[*]} mariadb-server"
    # The two cannot be installed beside each other: MySQL is had from here, as only unstable has it.
    [sid]="${common[*]} mysql-server"
)

main() {
    local releases=() release root
    while (($#)); do
        case "$1" in
            -h | --help) usage && exit ;;
            --) shift && break ;;
            *) releases+=("$1") && shift ;;
        esac
    done
    ((${#releases[@]})) || releases=(trixie sid)
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
    cd "$root"
    # shellcheck source=deploy/quickstart/debian.sh
    . deploy/quickstart/debian.sh
    # shellcheck source=tests/matrix/tree.sh
    . tests/matrix/tree.sh
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/outbox-relay/matrix
    logs=$(cargo metadata --locked --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
    for release in "${releases[@]}"; do
        [ "${packages[$release]-}" ] || die "no release is called $release; there are: ${!packages[*]}"
        # shellcheck disable=SC2086 # a list
        make_tree "$release" "$cache/$release" ${packages[$release]}
    done
    export RUST_TEST_THREADS=${RUST_TEST_THREADS:-2}
    table='| Debian | PostgreSQL | MariaDB, MySQL | RabbitMQ | PgBouncer | passed | failed | date |'
    failed=
    for release in "${releases[@]}"; do
        run_in "$release" "$@"
    done
    printf '\n%s\n|---|---|---|---|---|---|---|---|\n%s\n' "${table%%$'\n'*}" "${table#*$'\n'}"
    [ -z "$failed" ] || die "failed in: $failed"
}

# Adds a line to the table.
run_in() {
    local release=$1 tree=$cache/$1 log=$logs/matrix-$1.log runner counts
    shift
    # There is no compiler in there.
    cargo build --locked --example consumer || return
    say "$release: cargo test --locked --test suite $*"
    runner="target.'cfg(all())'.runner = ['$PWD/tests/matrix/within.sh', '$tree']"
    cargo test --locked --config "$runner" --test suite "$@" 2>&1 | tee "$log" || failed+=" $release"
    counts=$(sed -n 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed.*/\1 | \2/p' "$log")
    table+=$(printf '\n| %s | %s | %s | %s | %s | %s | %s |' "$release" "$(version "$tree" 'postgresql-[0-9]*')" \
        "$(version "$tree" mariadb-server)$(version "$tree" mysql-server)" "$(version "$tree" rabbitmq-server)" \
        "$(version "$tree" pgbouncer)" "${counts:-not run | not run}" "$(date +%F)")
}

say() {
    echo "tests/matrix/run.sh: $*"
}

die() {
    say "$*" >&2
    exit 1
}

main "$@"
