"""Results out: REST, WebSocket, Server-Sent Events, snapshots, Prometheus."""
