#!/usr/bin/env bash
# Called by `tests/run.sh --fuzz`. Coverage-guided, by libFuzzer: seeds/ has what each target begins with, what it learns
# stays in target/fuzz/corpus, and an input that broke something is in target/fuzz/found.
set -euo pipefail

usage() {
    cat <<'END'
Fuzzes everything that reads outside input.

    tests/run.sh --fuzz [SECONDS [TARGET...]]    so long for each target, 12 unless told, a minute for all
    tests/run.sh --fuzz TARGET FILE              once, with the input of a file

Targets: message, headers, configuration, templates, requests.
END
}

targets=(message headers configuration templates requests)

main() {
    cd "$(dirname "${BASH_SOURCE[0]}")"
    # shellcheck source=deploy/quickstart/debian.sh
    . ../../deploy/quickstart/debian.sh
    command -v c++ >/dev/null || install_packages g++
    case "${1-12}" in
        -h | --help) usage && exit ;;
        *[!0-9]*) build && exec "$(program "$1")" "$(realpath "${2:?an input}")" ;;
    esac
    local seconds=${1-12} target
    (($# < 2)) || targets=("${@:2}")
    build
    for target in "${targets[@]}"; do
        fuzz "$target" "$seconds"
    done
}

folder=$(realpath -m "${CARGO_TARGET_DIR:-$(dirname "${BASH_SOURCE[0]}")/../../target}")/fuzz
host=$(rustc --version --verbose | sed -n 's/^host: //p')

# With the counters that libFuzzer looks at, as `cargo fuzz` sets them, but with the stable compiler. With --target they are not
# for build scripts.
build() {
    local flags=(
        -Cpasses=sancov-module
        -Cllvm-args=-sanitizer-coverage-level=4
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
        -Cllvm-args=-sanitizer-coverage-pc-table
        -Cllvm-args=-sanitizer-coverage-trace-compares
        -Cllvm-args=-simplifycfg-branch-fold-threshold=0
    )
    cmp -s ../../Cargo.lock "$folder/relay.lock" || cp ../../Cargo.lock Cargo.lock
    RUSTFLAGS="${flags[*]}" CARGO_TARGET_DIR=$folder cargo build --release --target "$host"
    cp ../../Cargo.lock "$folder/relay.lock"
}

program() {
    echo "$folder/$host/release/$1"
}

fuzz() {
    local corpus=$folder/corpus/$1 log=$folder/$1.log
    mkdir -p "$corpus" "$folder/found"
    say "$1, for $2 s"
    if ! "$(program "$1")" -max_total_time="$2" -timeout=20 -rss_limit_mb=2048 -max_len=8192 -print_final_stats=1 \
        -artifact_prefix="$folder/found/$1-" "$corpus" "seeds/$1" >"$log" 2>&1; then
        tail -n 60 "$log" >&2
        die "$1 broke; all it said is in $log, the input in $folder/found"
    fi
    say "$1: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs," \
        "$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log") a second"
}

say() {
    echo "tests/run.sh: $*"
}

die() {
    say "$*" >&2
    exit 1
}

main "$@"
