#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat <<'END'
Runs the whole test suite against real servers.

    tests/run.sh [ARGUMENT...]     the arguments go to `cargo test`: a test's name, `--test suite`, `-- --nocapture`
    tests/run.sh --install-only    only install what the tests need
    tests/run.sh --deploy          check everything under deploy/ instead, as far as it goes without cluster and container
                                   engine; says what was not checked
    tests/run.sh --fuzz [ARGUMENT...]
                                   fuzz everything that reads outside input, for a minute; see --fuzz --help
    tests/run.sh --matrix [ARGUMENT...]
                                   run the suite against the servers of other releases of Debian; see --matrix --help

Installs PostgreSQL, PgBouncer, MariaDB and RabbitMQ from Debian, and a client in Python from PyPI, when they are missing (as root or with sudo), without starting
their services: the tests start private servers in temporary folders and end them.
END
}

# postgresql, mariadb-server, rabbitmq-server: the servers. pgbouncer: a pooler. erlang-base: its erl_call, with which tests
# steer a broker. faketime: wrong clocks. procps: its kill, for signals by name. python3-venv: consumers in Python. zstd:
# decompresses what they got. gcc, libc6-dev, make: to build.
packages=(postgresql pgbouncer mariadb-server rabbitmq-server erlang-base faketime procps python3-venv zstd)

main() {
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    # Bytes. Futures of an unoptimized build can be larger than the two MiB of a test's thread.
    export RUST_MIN_STACK=${RUST_MIN_STACK:-8388608}
    case "${1-}" in
        -h | --help) usage && exit ;;
        --deploy) exec tests/deploy/run.sh ;;
        --fuzz) shift && exec tests/fuzz/run.sh "$@" ;;
        --matrix) shift && exec tests/matrix/run.sh "$@" ;;
    esac
    # shellcheck source=deploy/quickstart/debian.sh
    . deploy/quickstart/debian.sh
    command -v cc >/dev/null || packages+=(gcc libc6-dev)
    command -v make >/dev/null || packages+=(make)
    install_packages "${packages[@]}"
    install_python
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

# The packages of tests/python/requirements.txt, in a folder that goes with the build.
install_python() {
    local folder=${CARGO_TARGET_DIR:-target}/tests-python log
    ! cmp -s tests/python/requirements.txt "$folder/installed" || return 0
    say "Installing from PyPI: $(grep -o '^[^#[:space:]]*' tests/python/requirements.txt | tr '\n' ' ')"
    log=$(mktemp)
    rm -rf "$folder"
    if ! { python3 -m venv "$folder" && "$folder/bin/pip" install --disable-pip-version-check \
        --requirement tests/python/requirements.txt; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        die "pip failed; all it said is in $log"
    fi
    rm -f "$log"
    cp tests/python/requirements.txt "$folder/installed"
}

say() {
    echo "tests/run.sh: $*"
}

die() {
    say "$*" >&2
    exit 1
}

main "$@"
