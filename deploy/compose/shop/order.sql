BEGIN;
-- Whoever orders for the same customer at the same time waits here: so the ids of a customer's messages are in the order
-- of the commits.
SELECT pg_advisory_xact_lock(hashtextextended('customer-7', 0)) \g /dev/null
WITH placed AS (
    INSERT INTO orders (customer, amount_cents) VALUES ('customer-7', (random() * 20000)::int)
    RETURNING id, customer, amount_cents
)
INSERT INTO outbox (routing_key, ordering_key, payload)
SELECT 'orders.placed', customer, json_build_object('order', id, 'customer', customer, 'amount_cents', amount_cents)
FROM placed;
COMMIT;
