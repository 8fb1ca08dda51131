#!/usr/bin/env bash
# Checks everything under deploy/ as far as that goes without cluster, container engine and systemd: tests/run.sh --deploy
#
# Each check says "ok", "FAILED" or "not checked" with the reason; what was not checked is told again at the end. Ends
# with 1 when one failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
exec </dev/null

# shellcheck source=tests/deploy/tools.sh
. tests/deploy/tools.sh
# shellcheck source=tests/deploy/image.sh
. tests/deploy/image.sh
# shellcheck source=tests/deploy/package.sh
. tests/deploy/package.sh

work=$(mktemp -d "${TMPDIR:-/tmp}/outbox-relay-deploy.XXXXXX")
trap 'rm -rf "$work"' EXIT
failed=0
unchecked=()

main() {
    check "scripts: shellcheck" shellcheck shellcheck -x tests/deploy/run.sh deploy/compose/shop/take-orders.sh
    check "build script: with git, without, from variables" - build_script
    check "docker: hadolint" hadolint hadolint deploy/docker/Dockerfile
    check "docker: what is copied suffices to build" - image_context
    check "docker: the program runs in an empty root with what the final stage has" - image_root
    not_checked "docker: the build of the image itself, for amd64 and arm64; that the digest is there" "needs a container engine and a registry"
    if docker compose version >/dev/null 2>&1; then
        check "compose: docker compose config" - docker compose --file deploy/compose/compose.yaml config --quiet
    else
        check "compose: Compose's own parser (there is no docker compose)" compose-go in_folder deploy/compose compose-go compose.yaml
    fi
    check "compose: files and passwords" kubernetes-validate "$cache/python/bin/python" tests/deploy/compose.py deploy/compose/compose.yaml
    not_checked "compose: that it comes up" "needs a container engine"
    check "kubernetes: kustomize build" kustomize kustomize_build
    check "helm: lint" helm helm_lint
    check "helm: template" helm helm_template
    check "helm: what the schemas must refuse" helm helm_refuses
    check "helm: versions are those of Cargo.toml" - helm_versions
    check "kubernetes and helm: schemas of 1.29 and 1.37" kubernetes-validate object_schemas
    if need_crds; then
        check "kubernetes and helm: the same container everywhere, objects of the Prometheus Operator" kubernetes-validate object_rules
    else
        not_checked "kubernetes and helm: the same container everywhere, objects of the Prometheus Operator" "$why"
    fi
    not_checked "kubernetes and helm: that pods start, probes and network policies work, \`helm test\`" "needs a cluster; the order of start and stop is tested by tests/suite/lifecycle.rs"
    check "monitoring: rules" promtool promtool check rules deploy/monitoring/recording.yaml deploy/monitoring/alerts.yaml
    check "monitoring: when alerts fire and when not" promtool promtool test rules tests/deploy/monitoring/rules_test.yaml
    check "monitoring: queries and places of the panels" promtool panels
    not_checked "monitoring: how Grafana shows the dashboard" "needs a Grafana"
    check "systemd: verify" systemd-analyze systemd_verify
    check "systemd: exposure" systemd-analyze systemd_exposure
    check "deb: contents" cargo-deb package_contents
    check "deb: installed, run, stopped, removed and purged in a copy of this system" cargo-deb package_life
    not_checked "systemd: that the sandbox of the unit lets the relay work; the unit's start, stop and watchdog" "needs systemd as init; readiness and watchdog are tested against a socket by tests/suite/lifecycle.rs"
    check "workflows: actionlint" actionlint actionlint .github/workflows/release.yaml .github/workflows/advisories.yaml
    not_checked "release: that it runs; signatures, SBOM and provenance" "needs the forge"
    report
}

# check WHAT PROGRAM COMMAND...: runs the command if the program that it needs can be had ("-": none).
check() {
    local what=$1 program=$2
    shift 2
    why=
    if [ "$program" != - ] && ! need "$program"; then
        not_checked "$what" "$why"
    elif "$@" >"$work/log" 2>&1; then
        echo "ok           $what$(tail -n 1 "$work/log" | sed -n 's/^said: /: /p')"
    elif [ $? = 77 ]; then
        # As automake has it: the test could not be made.
        not_checked "$what" "$(tail -n 1 "$work/log")"
    else
        echo "FAILED       $what"
        sed 's/^/    /' "$work/log"
        failed=$((failed + 1))
    fi
}

# As the quickstart does: below the range of the ports that the kernel chooses itself.
free_port() {
    local port
    while true; do
        port=$((11000 + RANDOM % 21000))
        (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

not_checked() {
    echo "not checked  $1"
    unchecked+=("$1: $2")
}

report() {
    echo
    echo "Not checked here, and why:"
    printf '  - %s\n' "${unchecked[@]}"
    if ((failed)); then
        echo "FAILED: $failed of the checks of deploy/" >&2
        exit 1
    fi
}

# ------------------------------------------------------------------------------------- build script

build_script() {
    local version date
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
    CARGO_PKG_VERSION=$version rustc --edition 2024 deploy/build.rs -o "$work/build-script" || return
    mkdir -p "$work/archive"
    says "$work/archive" "$version" env -u OUTBOX_RELAY_COMMIT -u OUTBOX_RELAY_COMMIT_DATE || return
    says "$work/archive" "$version (0123456789ab 2026-01-02)" \
        env OUTBOX_RELAY_COMMIT=0123456789abcdef OUTBOX_RELAY_COMMIT_DATE=2026-01-02 || return
    if [ -e .git ]; then
        date=$(git log -1 --format=%cd --date=format:%Y-%m-%d)
        says . "$version ($(git rev-parse --short=12 HEAD) $date)" env -u OUTBOX_RELAY_COMMIT -u OUTBOX_RELAY_COMMIT_DATE
    fi
}

# says FOLDER VERSION COMMAND...: what the build script makes of it there.
says() {
    local folder=$1 expected="cargo::rustc-env=OUTBOX_RELAY_VERSION=$2"
    shift 2
    (cd "$folder" && "$@" "$work/build-script") | grep -xF "$expected" || { echo "$folder: not $expected"; return 1; }
}

# ------------------------------------------------------------------------------ Kubernetes and Helm

kustomize_build() {
    local folder
    mkdir -p "$work/objects"
    for folder in tests/deploy/kubernetes/*/; do
        kustomize build "$folder" >"$work/objects/kustomize-$(basename "$folder").yaml" || return
    done
}

# In a copy: helm leaves the dependencies that it packed beside the charts.
helm_charts() {
    [ ! -e "$work/charts" ] || return 0
    cp -rL deploy/helm "$work/charts" && cp -r tests/deploy/helm "$work/charts/shop" &&
        helm dependency build "$work/charts/outbox-relay" && helm dependency build "$work/charts/shop"
}

helm_lint() {
    helm_charts && helm lint --strict "$work"/charts/*/
}

helm_template() {
    helm_charts && mkdir -p "$work/objects" || return
    standalone >"$work/objects/helm-default.yaml" &&
        standalone --set podMonitor.enabled=true,prometheusRule.enabled=true \
            --set networkPolicy.enabled=false >"$work/objects/helm-operator.yaml" &&
        helm template shop "$work/charts/shop" --kube-version 1.29.0 >"$work/objects/helm-sidecar.yaml" || return
    local alerts
    alerts=$(grep -c 'alert: ' deploy/monitoring/alerts.yaml)
    [ "$(grep -c 'alert: ' "$work/objects/helm-operator.yaml")" = "$alerts" ] || { echo "the chart lacks alerts"; return 1; }
}

standalone() {
    helm template shop "$work/charts/outbox-relay" --kube-version 1.29.0 "$@"
}

helm_refuses() {
    helm_charts || return
    local setting
    for setting in replicas=two podMonitor.enable=true outboxRelay.image.tagg=1 outboxRelay.drain=maybe \
        outboxRelay.env.RELAY_DATABASE_URL=postgres://a:b@c/d outboxRelay.env.RELAY_POLL_BATCH_SIZE=5 outboxRelay.env.relay_log=x; do
        if standalone --set "$setting"; then
            echo "$setting is taken"
            return 1
        fi
    done
}

helm_versions() {
    local version chart
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
    for chart in deploy/helm/*/Chart.yaml; do
        [ "$(grep -cxE "(version|appVersion): $version" "$chart")" = 2 ] || { echo "$chart is not of version $version"; return 1; }
    done
    grep -q "^  tag: $version\$" deploy/helm/outbox-relay-sidecar/values.yaml || { echo "the image's tag is not $version"; return 1; }
}

# 1.29: the oldest with native sidecars. What has no schema there is the Prometheus Operator's, see object_rules.
object_schemas() {
    local version
    [ -d "$work/objects" ] || { echo "neither kustomize nor helm made any"; return 77; }
    for version in 1.29.1 1.37.0; do
        kubernetes-validate --strict --no-warn --kubernetes-version "$version" "$work"/objects/*.yaml || return
    done
}

object_rules() {
    [ -d "$work/objects" ] || { echo "neither kustomize nor helm made any"; return 77; }
    "$cache/python/bin/python" tests/deploy/objects.py "$crds" "$work"/objects/*.yaml
}

# --------------------------------------------------------------------------- monitoring and systemd

panels() {
    python3 tests/deploy/panels.py deploy/monitoring/dashboard.json >"$work/panels.yaml" && promtool check rules "$work/panels.yaml"
}

# With a program at the path that the unit names, which is not installed here.
systemd_verify() {
    mkdir -p "$work/unit"
    sed "s|^ExecStart=/usr/bin/outbox-relay|ExecStart=$(command -v true)|" deploy/systemd/outbox-relay.service \
        >"$work/unit/outbox-relay.service"
    local said
    said=$(systemd-analyze verify --man=no --recursive-errors=no "$work/unit/outbox-relay.service" 2>&1) && [ -z "$said" ] && return
    echo "$said"
    return 1
}

# 0 is nothing that could be misused, 10 everything; in tenths.
systemd_exposure() {
    mkdir -p "$work/unit"
    cp deploy/systemd/outbox-relay.service "$work/unit/exposure.service"
    systemd-analyze security --offline=true --threshold=15 --no-pager "$work/unit/exposure.service" >"$work/exposure"
    local status=$?
    grep -v '^✓' "$work/exposure"
    echo "said: $(sed -n 's/.*exposure level for [^:]*: \([0-9.]*\).*/\1 of 10/p' "$work/exposure")"
    return $status
}

main
