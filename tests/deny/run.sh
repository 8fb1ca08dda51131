#!/usr/bin/env bash
# Checks the dependencies against .deny.toml: licences, what may not be among them, where they come from; and against
# RustSec's advisories, where github.com can be reached. On the forge it must be.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
exec </dev/null

version=0.20.2
advisories=https://github.com/RustSec/advisory-db

main() {
    local folder=${CARGO_TARGET_DIR:-target}/tests-deny
    PATH=$PATH:$PWD/$folder/bin:$folder/bin
    command -v cargo-deny >/dev/null || install "$folder"
    cargo deny --locked check bans licenses sources
    if reachable; then
        cargo deny --locked check advisories
    elif [ "${GITHUB_ACTIONS-}" ]; then
        say "FAILED: $advisories cannot be reached" >&2
        exit 1
    else
        say "not checked: advisories ($advisories cannot be reached)"
    fi
}

# An own cargo-deny in the PATH is used as it is.
install() {
    local log
    log=$(mktemp)
    rm -rf "$1"
    say "Installing cargo-deny $version"
    if ! { python3 -m venv "$1" && "$1/bin/pip" install --disable-pip-version-check --require-hashes \
        --requirement tests/deny/requirements.txt; } >"$log" 2>&1 &&
        # Another kind of machine.
        ! cargo install --locked --root "$1" "cargo-deny@$version" >>"$log" 2>&1; then
        tail -n 20 "$log" >&2
        say "cargo-deny cannot be installed; all that was said is in $log" >&2
        exit 1
    fi
    rm -f "$log"
}

reachable() {
    GIT_TERMINAL_PROMPT=0 timeout 20 git ls-remote --exit-code "$advisories" HEAD >/dev/null 2>&1
}

say() {
    echo "tests/deny/run.sh: $*"
}

main
