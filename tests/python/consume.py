"""Prints what a queue delivers, one JSON object a line: consume.py URL QUEUE COUNT

Ends after COUNT different message ids; copies are printed as well. Values say their types, as JSON has fewer than AMQP.
"""

import calendar
import datetime
import decimal
import gzip
import hashlib
import json
import struct
import subprocess
import sys

import pika
import pika.data

PROPERTIES = [
    "content_type", "content_encoding", "delivery_mode", "priority", "correlation_id", "reply_to", "expiration",
    "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id",
]


# pika reads a double as a whole number (1.4.4: `decode_value` makes an int of it); everything else is its own.
pika_decodes = pika.data.decode_value


def decode_value(encoded, offset):
    if encoded[offset:offset + 1] == b"d":
        return struct.unpack_from(">d", encoded, offset + 1)[0], offset + 9
    return pika_decodes(encoded, offset)


pika.data.decode_value = decode_value


def typed(value):
    match value:
        case None:
            return {"null": None}
        case bool():
            return {"boolean": value}
        case int():
            return {"integer": str(value)}
        case float():
            return {"double": struct.pack(">d", value).hex()}
        case str():
            return {"text": value}
        case bytes() | bytearray():
            return {"bytes": value.hex()}
        case datetime.datetime():
            return {"timestamp": calendar.timegm(value.utctimetuple())}
        case decimal.Decimal():
            sign, digits, exponent = value.as_tuple()
            unscaled = int("".join(map(str, digits)))
            return {"decimal": [-exponent, -unscaled if sign else unscaled]}
        case list():
            return {"array": [typed(item) for item in value]}
        case dict():
            return {"table": {name: typed(item) for name, item in value.items()}}
    raise TypeError(f"{type(value)} is no value of AMQP")


def decoded(body, encoding):
    """The body as it was before the relay compressed it."""
    if encoding == "gzip":
        return gzip.decompress(body)
    if encoding == "zstd":
        return subprocess.run(["zstd", "-dc"], input=body, stdout=subprocess.PIPE, check=True).stdout
    return body


def main(url, queue, count):
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=100)
    seen = set()
    for method, properties, body in channel.consume(queue, inactivity_timeout=60):
        if method is None:
            sys.exit(f"nothing came for a minute, after {len(seen)} messages")
        set_ones = {name: getattr(properties, name) for name in PROPERTIES}
        plain = decoded(body, properties.content_encoding)
        print(json.dumps({
            "exchange": method.exchange,
            "routing_key": method.routing_key,
            "redelivered": method.redelivered,
            "properties": {name: value for name, value in set_ones.items() if value is not None},
            "headers": typed(properties.headers or {}),
            "encoded_bytes": len(body),
            "bytes": len(plain),
            "sha256": hashlib.sha256(plain).hexdigest(),
        }))
        channel.basic_ack(method.delivery_tag)
        seen.add(properties.message_id)
        if len(seen) == count:
            break
    channel.cancel()
    connection.close()


main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
