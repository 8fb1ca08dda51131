"""A receiver of OTLP over HTTP: collector.py STATUS [CERTIFICATE KEY]

Prints its port, and then each span that it takes as a line of JSON. STATUS is its answer: 200 takes them, 503 takes none.
With a certificate it is served over TLS.
"""

import gzip
import json
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

STATUS = int(sys.argv[1])


def attributes(given):
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in given}


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans if STATUS == 200 else []:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.show(resource.resource, span)
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(STATUS)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def show(self, resource, span):
        line = json.dumps({
            "path": self.path,
            "content_type": self.headers["Content-Type"],
            "authorization": self.headers.get("Authorization"),
            "resource": attributes(resource.attributes),
            "trace": span.trace_id.hex(),
            "span": span.span_id.hex(),
            "parent": span.parent_span_id.hex(),
            "tracestate": span.trace_state,
            "name": span.name,
            "kind": span.kind,
            "status": span.status.code,
            "nanoseconds": span.end_time_unix_nano - span.start_time_unix_nano,
            "attributes": attributes(span.attributes),
        })
        # One write: requests are threads.
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
if sys.argv[2:]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*sys.argv[2:])
    server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
