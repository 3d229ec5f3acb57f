"""What Prometheus gets to see of the server."""

from server.metrics.metrics import Metrics, MetricsSource, StreamCounters

__all__ = ["Metrics", "MetricsSource", "StreamCounters"]
