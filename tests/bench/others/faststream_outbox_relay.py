"""faststream-outbox, passing rows on to RabbitMQ as its tutorial does. `create` makes its table, `run` relays."""

import os
import sys

import uvloop
from faststream import FastStream
from faststream.rabbit import RabbitBroker, RabbitExchange
from faststream_outbox import OutboxBroker, make_outbox_table
from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import create_async_engine

# It holds a connection for each, of the hundred that PostgreSQL has by default.
WORKERS = 50

metadata = MetaData()
table = make_outbox_table(metadata, table_name="faststream_outbox")
url = os.environ["DATABASE_URL"].replace("postgres://", "postgresql+asyncpg://")
engine = create_async_engine(url, pool_size=WORKERS + 5, max_overflow=0)
outbox = OutboxBroker(engine, outbox_table=table)
rabbit = RabbitBroker(os.environ["AMQP_URL"])
exchange = RabbitExchange(os.environ["EXCHANGE"], declare=False)


@rabbit.publisher(routing_key=os.environ["ROUTING_KEY"], exchange=exchange, persist=True)
@outbox.subscriber(
    "bench",
    max_workers=WORKERS,
    fetch_batch_size=5000,
    min_fetch_interval=0.01,
    terminal_flush_batch_size=100,
)
async def relay(body: bytes) -> bytes:
    return body


async def create() -> None:
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)


if sys.argv[1] == "create":
    uvloop.run(create())
else:
    uvloop.run(FastStream(outbox, on_startup=[rabbit.connect]).run(log_level=30))
