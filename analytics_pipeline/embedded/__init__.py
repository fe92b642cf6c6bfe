"""Real servers that pip alone brings, started and stopped: PostgreSQL, a Kafka-protocol broker, Valkey.

For the demo, the smoke run, the benchmark and the tests. Nothing of the pipeline itself lives here, and
nothing that runs in production starts anything from here.
"""

from analytics_pipeline.embedded.broker import BrokerServer
from analytics_pipeline.embedded.ports import PortChoice, choose_port
from analytics_pipeline.embedded.postgres import PostgresServer
from analytics_pipeline.embedded.processes import Managed, Supervisor
from analytics_pipeline.embedded.stack import PreferredPorts, Stack, forget_connections
from analytics_pipeline.embedded.stop_signals import StopSignals
from analytics_pipeline.embedded.valkey import ValkeyServer

__all__ = [
    "BrokerServer",
    "Managed",
    "PortChoice",
    "PostgresServer",
    "PreferredPorts",
    "Stack",
    "StopSignals",
    "Supervisor",
    "ValkeyServer",
    "choose_port",
    "forget_connections",
]
