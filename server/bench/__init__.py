"""The server with real cameras, beside what its parts do alone on the same machine: `python -m server.bench`."""
