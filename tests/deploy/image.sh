# shellcheck shell=bash
# The image without an engine: what the Dockerfile copies, and what its final stage holds. To be sourced.

# The build stage's two layers, by hand, with only those files that the context lets through; checked, not optimised, as
# it is about files.
image_context() {
    local context=$work/context target=${CARGO_TARGET_DIR:-$PWD/target}/deploy-context pattern
    mkdir -p "$context"
    sed -n 's/^!//p' deploy/docker/Dockerfile.dockerignore >"$work/context-files"
    while read -r pattern; do
        [ -e "$pattern" ] || { echo "Dockerfile.dockerignore names $pattern, which is not there"; return 1; }
        cp -r --parents "$pattern" "$context"
    done <"$work/context-files"
    # Sources of the build stage, and those of the final one that are not from the build stage.
    local copied
    copied=$(sed -n 's/^COPY \([^-].*\) [^ ]*$/\1/p' deploy/docker/Dockerfile)
    for pattern in $copied; do
        [ -e "$context/$pattern" ] || { echo "the Dockerfile copies $pattern, which the context has not"; return 1; }
    done
    borrow_dependencies "${target%/*}/debug" "$target/debug" || return
    mv "$context/src" "$work/src" && mv "$context/migrations" "$work/migrations" && mkdir "$context/src" || return
    touch "$context/src/lib.rs"
    echo 'fn main() {}' >"$context/src/main.rs"
    image_cargo "$context" "$target" || return
    rm -r "$context/src"
    cp -r "$work/src" "$work/migrations" "$context" && touch "$context/src/lib.rs" "$context/src/main.rs" || return
    image_cargo "$context" "$target" && rm -r "$target"
}

# borrow_dependencies FROM TO: what is built already, as links; without the crate itself, because to cargo the crate in the
# context is the same one.
borrow_dependencies() {
    [ -d "$1/.fingerprint" ] || return 0
    rm -rf "$2" && mkdir -p "$2" &&
        cp --archive --link "$1/deps" "$1/build" "$1/.fingerprint" "$2" &&
        find "$2" -depth \( -name '*outbox-relay*' -o -name '*outbox_relay*' \) -exec rm -r {} +
}

image_cargo() {
    (cd "$1" && env -u OUTBOX_RELAY_COMMIT CARGO_TARGET_DIR="$2" nice cargo check --locked --bin outbox-relay)
}

# As the image: read-only, as user 65532, nothing there but the program, the libraries that distroless/cc has, certificate
# authorities and what the runtime mounts.
image_root() {
    local root=$work/root bin=${CARGO_TARGET_DIR:-target}/debug/outbox-relay library
    cargo build --locked --bin outbox-relay || return
    unshare --user --map-root-user --mount true || { echo "no user namespaces here (unshare)"; return 77; }
    mkdir -p "$root/usr/local/bin" "$root/etc/ssl/certs" "$root/proc" "$root/run/secrets"
    cp "$bin" "$root/usr/local/bin/"
    for library in $(ldd "$bin" | grep -o '/[^ ]*'); do
        case ${library##*/} in
            ld-linux*.so.* | libc.so.6 | libm.so.6 | libgcc_s.so.1) ;;
            *) echo "the image has no $library"; return 1 ;;
        esac
        mkdir -p "$root${library%/*}" && cp -L "$library" "$root$library"
    done
    [ ! -e /etc/ssl/certs/ca-certificates.crt ] || cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    echo 'nonroot:x:65532:65532::/home/nonroot:/sbin/nologin' >"$root/etc/passwd"
    echo '127.0.0.1 database.test broker.test' >"$root/etc/hosts"
    # Ports where nobody listens: it is about names, secrets and certificates.
    echo 'postgres://app:secret@database.test:1/app' >"$root/run/secrets/database-url"
    echo 'amqps://app:secret@broker.test:1/%2f' >"$root/run/secrets/amqp-url"
    # In this shell: those who come later in shells of their own need the same port.
    image_port=$(free_port)
    in_root "$root" --version || return
    in_root "$root" check >"$work/image-check" 2>&1
    cat "$work/image-check"
    if grep -qi 'lookup\|resolve\|certificate\|no such file' "$work/image-check"; then
        return 1
    fi
    grep -qi 'refused' "$work/image-check" || return
    image_runs "$root"
}

# Starts, is alive without database and broker, and stops; asked by the image's own HEALTHCHECK and entry point.
image_runs() {
    local root=$1 pid status=0
    enter_root "$root" run &
    pid=$!
    for _ in {1..100}; do
        ! in_root "$root" healthcheck || break
        sleep 0.1
    done
    in_root "$root" healthcheck || status=1
    # Not ready: nobody answers.
    ! in_root "$root" healthcheck --ready || status=1
    kill -TERM "$pid"
    wait "$pid" || status=1
    return $status
}

in_root() {
    (enter_root "$@")
}

# Becomes the program, so that the process is the one to signal. The outer namespace mounts the root read-only, the inner
# one has the image's user.
enter_root() {
    local root=$1
    shift
    # shellcheck disable=SC2016 # of the inner shell
    exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        RELAY_DATABASE_URL_FILE=/run/secrets/database-url RELAY_AMQP_URL_FILE=/run/secrets/amqp-url \
        RELAY_ADMIN_LISTEN="127.0.0.1:$image_port" \
        unshare --user --map-root-user --mount sh -c 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" &&
            exec unshare --user --map-user=65532 --map-group=65532 --root="$0" /usr/local/bin/outbox-relay "$@"' "$root" "$@"
}
