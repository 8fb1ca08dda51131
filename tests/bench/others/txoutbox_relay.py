"""txoutbox with its own storage for PostgreSQL, publishing by aio-pika. `create` makes its table, `run` relays."""

import asyncio
import os
import sys

import aio_pika
import asyncpg
import uvloop
from txoutbox import OutboxMessage, Relay, RelayConfig
from txoutbox.adapters.postgres import PostgresStorage


async def main(command: str) -> None:
    pool = await asyncpg.create_pool(os.environ["DATABASE_URL"])
    # Strict order per key is its default, as it is the relay's.
    storage = PostgresStorage(pool, table="txoutbox", delete_on_ack=True)
    if command == "create":
        await storage.create_schema()
        return
    connection = await aio_pika.connect_robust(os.environ["AMQP_URL"])
    # Confirms, and an error for what is returned.
    channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
    exchange = await channel.get_exchange(os.environ["EXCHANGE"])

    async def publish(message: OutboxMessage) -> None:
        body = aio_pika.Message(
            message.payload,
            message_id=str(message.id),
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        await exchange.publish(body, routing_key=message.topic)

    # All keys of a batch at once: its documentation asks for no more than lease / publish_timeout rounds of a batch.
    config = RelayConfig(batch_size=1000, concurrency=1000)
    await Relay(storage, publish, config=config).run(handle_signals=True)


uvloop.run(main(sys.argv[1]))
