#!/bin/sh
# An application with an outbox, as small as can be: one order a second.
set -eu
PGPASSWORD=$(cat /run/secrets/database-password)
export PGPASSWORD
psql --quiet --set ON_ERROR_STOP=1 --file /shop/table.sql
while true; do
    psql --quiet --set ON_ERROR_STOP=1 --file /shop/order.sql
    sleep 1
done
