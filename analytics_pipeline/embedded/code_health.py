"""Whether a Dagster code server serves the definitions: asks it for its repositories, as the daemon does.

Dagster's own health check asks whether the process answers at all, which it also does when it serves nothing. Also
the health check of Docker Compose:   python -m analytics_pipeline.embedded.code_health HOST PORT

Speaks gRPC without importing Dagster: that takes seconds, and this is asked every few seconds.
"""

from __future__ import annotations

import sys

import grpc

LIST_REPOSITORIES = "/api.DagsterApi/ListRepositories"
#: In the serialized answer; where the code could not be loaded it holds an error instead.
SERVES = b"ListRepositoriesResponse"
TIMEOUT_S = 5.0


def serves_definitions(host: str, port: int, timeout_s: float = TIMEOUT_S) -> bool:
    """Whether the code server answers within the time, with repositories and no error."""
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        ask = channel.unary_unary(LIST_REPOSITORIES, request_serializer=bytes, response_deserializer=bytes)
        try:
            return SERVES in ask(b"", timeout=timeout_s)
        except grpc.RpcError:
            return False


if __name__ == "__main__":
    sys.exit(not serves_definitions(sys.argv[1], int(sys.argv[2])))
