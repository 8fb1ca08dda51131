#!/bin/sh
# Installs the package, runs the program as its unit would, removes and purges it; in a copy of the system, as root. Its
# argument is a free port. Without systemd the unit itself does not start.
set -eux

dpkg --install /outbox-relay.deb
outbox-relay --version
test -e /usr/lib/systemd/system/outbox-relay.service
# Neither enabled nor started: there are no URLs yet.
test ! -e /etc/systemd/system/multi-user.target.wants/outbox-relay.service

# As the unit has it: credentials as files, the settings of the conffile, a user who may nothing else.
credentials=$(mktemp -d)
echo 'postgres://app:secret@127.0.0.1:1/app' >"$credentials/database-url"
echo 'amqp://app:secret@127.0.0.1:1/%2f' >"$credentials/amqp-url"
chown -R nobody "$credentials"
echo 'RELAY_LOG=debug' >>/etc/outbox-relay/outbox-relay.env
set -a
# shellcheck source=/dev/null
. /etc/outbox-relay/outbox-relay.env
set +a
export RELAY_DATABASE_URL_FILE="$credentials/database-url" RELAY_AMQP_URL_FILE="$credentials/amqp-url"
export RELAY_ADMIN_LISTEN="127.0.0.1:$1"
setpriv --reuid=nobody --regid=nogroup --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all outbox-relay run &
relay=$!
tries=0
until outbox-relay healthcheck; do
    tries=$((tries + 1))
    test $tries -lt 100
    sleep 0.1
done
kill -TERM $relay
wait $relay

dpkg --remove outbox-relay
test ! -e /usr/bin/outbox-relay
test ! -e /usr/lib/systemd/system/outbox-relay.service
# What somebody has changed stays until the package is purged.
grep RELAY_LOG=debug /etc/outbox-relay/outbox-relay.env
dpkg --purge outbox-relay
test ! -e /etc/outbox-relay
