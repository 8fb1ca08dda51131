#!/usr/bin/env bash
# Gets the relays that `cargo bench -- --others` compares with: mq-bridge-app from crates.io (some minutes to build), txoutbox and
# faststream-outbox from PyPI. Into target/others; remove that to get them anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

mq_bridge=1.3.0
folder=$(realpath -m "${CARGO_TARGET_DIR:-target}")/others
requirements=tests/bench/others/requirements.txt

# Only what the comparison needs: its own choice of features takes in thirty other systems.
cargo install --locked --root "$folder/mq-bridge" --no-default-features --features sqlx,amqp,http,rustls-aws-lc,mimalloc \
    "mq-bridge-app@$mq_bridge"
if ! cmp -s "$requirements" "$folder/python/installed"; then
    python3 -m venv --clear "$folder/python"
    "$folder/python/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements"
    cp "$requirements" "$folder/python/installed"
fi
echo "tests/bench/others/install.sh: All is in $folder; now: cargo bench -- --others"
