#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat <<'END'
Runs the whole test suite against real servers.

    tests/run.sh [ARGUMENT...]     the arguments go to `cargo test`: a test's name, `--test suite`, `-- --nocapture`
    tests/run.sh --install-only    only install what the tests need
    tests/run.sh --deploy          check everything under deploy/ instead, as far as it goes without cluster and container
                                   engine; says what was not checked
    tests/run.sh --matrix [ARGUMENT...]
                                   run the suite against the servers of other releases of Debian; see --matrix --help

Installs PostgreSQL, PgBouncer, MariaDB and RabbitMQ from Debian when they are missing (as root or with sudo), without starting
their services: the tests start private servers in temporary folders and end them.
END
}

# postgresql, mariadb-server, rabbitmq-server: the servers. pgbouncer: a pooler. erlang-base: its erl_call, with which tests
# steer a broker. faketime: wrong clocks. procps: its kill, for signals by name.
# python3-venv: consumers with other libraries, which come from PyPI. gcc, libc6-dev, make: to build.
packages=(postgresql pgbouncer mariadb-server rabbitmq-server erlang-base faketime procps python3-venv)

main() {
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    case "${1-}" in
        -h | --help) usage && exit ;;
        --deploy) exec tests/deploy/run.sh ;;
        --matrix) shift && exec tests/matrix/run.sh "$@" ;;
    esac
    # shellcheck source=deploy/quickstart/debian.sh
    . deploy/quickstart/debian.sh
    command -v cc >/dev/null || packages+=(gcc libc6-dev)
    command -v make >/dev/null || packages+=(make)
    install_packages "${packages[@]}"
    if [ "${1-}" = --install-only ]; then
        say "Everything the tests need is installed"
        exit
    fi
    command -v cargo >/dev/null || die "cargo is missing: install Rust, see https://rustup.rs"
    # Two at a time: each has servers of its own, and waits that a starved machine does not meet.
    export RUST_TEST_THREADS=${RUST_TEST_THREADS:-2}
    say "cargo test --locked $*"
    exec cargo test --locked "$@"
}

say() {
    echo "tests/run.sh: $*"
}

die() {
    say "$*" >&2
    exit 1
}

main "$@"
