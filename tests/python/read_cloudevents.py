"""Takes COUNT messages out of QUEUE at URL, reads them as CloudEvents, and prints each as a line of JSON."""

import json
import sys
import time

import pika
from cloudevents.core.bindings import amqp, rabbitmq

url, queue, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
end = time.monotonic() + 30
while count:
    method, properties, body = channel.basic_get(queue)
    if method is None:
        assert time.monotonic() < end, f"{count} messages are missing"
        time.sleep(0.02)
        continue
    headers = properties.headers or {}
    if any(name.startswith("ce-") for name in headers):
        event = rabbitmq.from_rabbitmq_event(rabbitmq.RabbitMQMessage(headers, properties.content_type, body))
    else:
        event = amqp.from_amqp_event(amqp.AMQPMessage({"content-type": properties.content_type}, headers, body))
    attributes = {name: value for name, value in event.get_attributes().items()}
    attributes["time"] = attributes["time"].isoformat()
    data = event.get_data()
    if isinstance(data, bytes):
        data = {"hex": data.hex()}
    print(json.dumps({"attributes": attributes, "data": data, "message_id": properties.message_id}))
    channel.basic_ack(method.delivery_tag)
    count -= 1
connection.close()
