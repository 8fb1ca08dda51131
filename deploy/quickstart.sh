#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat <<'END'
Shows outbox-relay at work, from nothing, in half a minute after the build.

    deploy/quickstart.sh [--keep]     run the demonstration
    deploy/quickstart.sh --stop       stop what --keep left running

Builds the relay, starts a private RabbitMQ and a shop with an SQLite outbox, takes orders, kills the broker
while orders keep coming, starts it again, and compares what was committed with what arrived. Ends with 0 only
if nothing is missing or out of order. Everything is in a temporary folder and is gone afterwards.

    --keep    leave broker, relay and consumer running to play with, and say how

RabbitMQ is installed from Debian when it is missing (as root or with sudo), without starting its service.
With RELAY_AMQP_URL in the environment that broker is used instead, and is not killed.
END
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=${CARGO_TARGET_DIR:-target}/release
# Every process started here carries this variable with "<folder>/<name>" as its value. That finds all of them, also
# Erlang's helpers, which leave the process group.
mark=OUTBOX_RELAY_QUICKSTART

main() {
    local keep=
    case "$#:${1-}" in
        0:) ;;
        1:--keep) keep=yes ;;
        1:--stop) stop_kept && exit ;;
        1:-h | 1:--help) usage && exit ;;
        *) usage >&2 && exit 64 ;;
    esac
    local given_broker=${RELAY_AMQP_URL-}
    prepare "$given_broker"

    SECONDS=0
    dir=$(mktemp -d "${TMPDIR:-/tmp}/outbox-relay-quickstart.XXXXXX")
    trap 'ended $?' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    configure "$given_broker"
    start_all "$given_broker"
    demonstrate "$given_broker"
    if [ "$keep" ]; then
        trap - EXIT
        explain
    else
        stop_relay
    fi
}

# Everything that may take long, once.
prepare() {
    command -v cargo >/dev/null || die "cargo is missing: install Rust, see https://rustup.rs"
    # shellcheck source=deploy/quickstart/debian.sh
    . deploy/quickstart/debian.sh
    command -v cc >/dev/null || install_packages gcc libc6-dev
    command -v make >/dev/null || install_packages make
    [ "$1" ] || install_packages rabbitmq-server
    say "Building (some minutes the first time)"
    cargo build --release --locked --example orders --bin outbox-relay
}

# The relay reads all its settings from the environment; here are those that it needs.
configure() {
    # Settings of another relay in the caller's environment are none of ours.
    unset DATABASE_URL AMQP_URL "${!RELAY_@}"
    # A name of its own on a broker that others use as well.
    queue=orders exchange=shop
    [ -z "$1" ] || queue=outbox-relay-quickstart-$$ exchange=outbox-relay-quickstart-$$
    broker_port=$(free_port)
    admin=127.0.0.1:$(free_port)
    export RELAY_DATABASE_URL=sqlite://$dir/shop.db
    local private=amqp://guest:guest@127.0.0.1:$broker_port/%2f
    # What is shown of it: a given URL may hold a password.
    broker=${1:+as given} broker=${broker:-$private}
    export RELAY_AMQP_URL=${1:-$private}
    export RELAY_AMQP_EXCHANGE=$exchange
    export RELAY_ADMIN_LISTEN=$admin
    export RELAY_LOG_FORMAT=text
    shop=(--database "$RELAY_DATABASE_URL" --inbox "sqlite://$dir/consumer.db" --findings "$dir/findings.json")
}

start_all() {
    if [ "$1" ]; then
        say "Using the broker of RELAY_AMQP_URL, with the exchange and queue $queue"
    else
        say "Starting a private RabbitMQ on port $broker_port"
        start_broker
    fi
    start consumer examples/orders consume "${shop[@]:2}" --queue "$queue" --exchange "$exchange" ${1:+--temporary}
    wait_for 60 "the consumer has declared its queue" queue_declared "$1"

    say "Creating the outbox in $dir/shop.db: outbox-relay migrate"
    "$bin/outbox-relay" migrate | indent
    say "Starting the relay: outbox-relay run"
    start relay outbox-relay run
    relay_pid=$!
    wait_for 20 "the relay is ready" healthy --ready
}

demonstrate() {
    say "Taking 200 orders a second, each with its message in one transaction"
    start shop examples/orders place --database "$RELAY_DATABASE_URL" --rate 200/s --until-file "$dir/closed"
    watch --for 10s
    if [ "$1" ]; then
        say "The broker is not ours: it is not stopped and started"
    else
        outage
    fi
    say "No more orders; waiting for the outbox to be empty"
    touch "$dir/closed"
    watch --until-drained --for 40s
    wait_for 10 "the shop closes" gone shop
    indent <"$dir/shop.log"

    say "Summary"
    orders summary "${shop[@]}"
    say "Nothing is missing, nothing is out of order"
}

outage() {
    say "Killing RabbitMQ (kill -9); orders keep coming"
    signal KILL broker
    wait_for 5 "the broker is gone" gone broker
    watch --for 6s
    echo "   GET /readyz says what is wrong:    $("$bin/outbox-relay" healthcheck --ready || true)"
    echo "   GET /livez, so nobody restarts it: $("$bin/outbox-relay" healthcheck)"
    say "Starting RabbitMQ again; orders still keep coming"
    start_broker
    watch --for 8s
}

# A clean stop waits for the confirms of what is in flight, and writes the marks.
stop_relay() {
    local status=0
    say "Stopping the relay (SIGTERM)"
    kill -TERM "$relay_pid"
    wait "$relay_pid" || status=$?
    [ "$status" = 0 ] || die "the relay ended with $status"
}

explain() {
    cat <<END

Broker, relay and consumer are still running.

    the relay       http://$admin/metrics  /readyz  /livez
                    tail -f $dir/relay.log
    the broker      $broker, exchange $exchange, queue $queue
    the consumer    tail -f $dir/consumer.log
    the database    $dir/shop.db

Publish a message with one insert (apt-get install sqlite3), and see it in the consumer's log:

    sqlite3 $dir/shop.db "INSERT INTO outbox (routing_key, payload) VALUES ('orders.placed', '{\"id\":1}')"

Take more orders, and compare again:

    $bin/examples/orders place --database $RELAY_DATABASE_URL --rate 500/s --count 5000
    $bin/examples/orders summary ${shop[*]}

Stop everything and remove the folder:

    deploy/quickstart.sh --stop
END
}

# ------------------------------------------------------------------------------------- processes

# start NAME PROGRAM [ARGUMENT...]: starts one of the built programs in the background, with a log.
start() {
    local name=$1 program=$2
    shift 2
    background "$name" "$bin/$program" "$@"
}

# In a session of its own: Ctrl-C in the terminal reaches this script only, which then stops one after the other.
background() {
    local name=$1
    shift
    env "$mark=$dir/$name" setsid "$@" </dev/null >>"$dir/$name.log" 2>&1 &
    # The relay's exit status is asked for; bash need not report how the others end.
    [ "$name" = relay ] || disown
}

orders() {
    "$bin/examples/orders" "$@"
}

# The consumer writes its findings from the moment it is connected.
queue_declared() {
    [ -e "$dir/findings.json" ] && return
    if [ -z "$1" ] && ! kill -0 "$broker_pid" 2>/dev/null; then
        die "RabbitMQ has ended, see below"
    fi
    return 1
}

# In the background, because bash runs a trap only between commands: a SIGTERM need not wait for the end of this one.
watch() {
    env "$mark=$dir/watch" "$bin/examples/orders" watch "${shop[@]}" "$@" &
    wait $!
}

healthy() {
    "$bin/outbox-relay" healthcheck "$@" >/dev/null 2>&1
}

# A node of its own: name, ports, cookie, folders and port mapper (epmd), so that it neither meets nor disturbs a
# RabbitMQ that this machine may be running.
start_broker() {
    local home=$dir/rabbitmq
    if gone epmd; then
        mkdir -p "$home"
        echo '[].' >"$home/enabled_plugins"
        epmd_port=$(free_port)
        distribution_port=$(free_port)
        background epmd epmd -port "$epmd_port" -address 127.0.0.1
    fi
    local environment=(
        HOME="$home"
        ERL_EPMD_PORT="$epmd_port"
        # Otherwise the node starts a port mapper that outlives it.
        ERL_ZFLAGS="-start_epmd false"
        ERL_CRASH_DUMP_SECONDS=0
        # By address: needs no name service.
        RABBITMQ_NODENAME=quickstart@127.0.0.1
        RABBITMQ_USE_LONGNAME=true
        RABBITMQ_NODE_IP_ADDRESS=127.0.0.1
        RABBITMQ_NODE_PORT="$broker_port"
        RABBITMQ_DIST_PORT="$distribution_port"
        RABBITMQ_MNESIA_BASE="$home/mnesia"
        RABBITMQ_LOG_BASE="$home/log"
        RABBITMQ_LOGS=-
        RABBITMQ_ENABLED_PLUGINS_FILE="$home/enabled_plugins"
        # Without the machine's own configuration.
        RABBITMQ_CONF_ENV_FILE=/dev/null
        RABBITMQ_CONFIG_FILE="$home/none"
        RABBITMQ_CONFIG_FILES="$home/none.d"
        RABBITMQ_ADVANCED_CONFIG_FILE="$home/none"
        # Two cores do, without spinning for work; other nodes can connect from this machine only.
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+S 2 +sbwt none +sbwtdcpu none +sbwtdio none \
            -kernel inet_dist_use_interface {127,0,0,1}"
    )
    background broker env "${environment[@]}" /usr/lib/rabbitmq/bin/rabbitmq-server
    broker_pid=$!
}

# processes NAME: the process ids of what was started under this name.
processes() {
    grep -lzx "$mark=$dir/$1" /proc/[0-9]*/environ 2>/dev/null | cut -d / -f 3 || true
}

gone() {
    [ -z "$(processes "$1")" ]
}

signal() {
    local pids
    pids=$(processes "$2")
    # shellcheck disable=SC2086 # one word each
    [ -z "$pids" ] || kill "-$1" $pids 2>/dev/null || true
}

# However the script ends: nothing of it stays.
ended() {
    set +e
    trap '' INT TERM HUP
    case $1 in
        0 | 130 | 143) ;;
        *) tail -n 15 "$dir"/*.log >&2 ;;
    esac
    echo "   stopping everything"
    # Bash need not report how they end.
    disown -a
    # What was started a moment ago carries the mark by then.
    sleep 0.2
    stop
    exit "$1"
}

stop() {
    local name
    # The relay before the broker: it waits for the confirms that are under way.
    for name in shop relay consumer; do
        signal TERM "$name"
        wait_for 10 "$name stops" gone "$name" || continue
    done
    until gone '.*'; do
        signal KILL '.*'
        sleep 0.1
    done
    rm -rf "$dir"
}

stop_kept() {
    local kept
    kept=$(cat /proc/[0-9]*/environ 2>/dev/null | tr '\0' '\n' | sed -n "s|^$mark=\(.*\)/[^/]*$|\1|p" | sort -u)
    [ "$kept" ] || echo "Nothing is running."
    for dir in $kept; do
        echo "Stopping what runs in $dir"
        stop
    done
}

# ----------------------------------------------------------------------------------------- tools

# wait_for SECONDS WHAT COMMAND...
wait_for() {
    local seconds=$1 what=$2 end=$((SECONDS + $1))
    shift 2
    until "$@"; do
        if ((SECONDS >= end)); then
            echo "quickstart.sh: not within $seconds s: $what" >&2
            return 1
        fi
        sleep 0.1
    done
}

# Below the range of the kernel's own choices: a client that keeps trying a stopped server's port from within that
# range is sooner or later given this very port, and connects to itself.
free_port() {
    local port
    while true; do
        port=$((11000 + RANDOM % 21000))
        (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

indent() {
    sed 's/^/   /'
}

say() {
    printf '\n[%2d s] %s\n' "$SECONDS" "$*"
}

die() {
    echo "quickstart.sh: $*" >&2
    exit 1
}

main "$@"
