#!/bin/sh
# An application with an outbox, as small as can be: one order a second.
set -eu
PGPASSWORD=$(cat /run/secrets/database-password)
export PGPASSWORD
psql --quiet --set ON_ERROR_STOP=1 --command 'CREATE TABLE IF NOT EXISTS orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer text NOT NULL, amount_cents int NOT NULL)'
while true; do
    psql --quiet --set ON_ERROR_STOP=1 --file /shop/order.sql
    sleep 1
done
