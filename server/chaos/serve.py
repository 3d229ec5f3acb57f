"""`python -m server.chaos.serve`: the server with an engine that can be told to fail, and nothing else changed."""

from __future__ import annotations

import functools
import sys

from server import cli
from server.chaos.engine import FACTORY
from server.inference import config


def main() -> int:
    # Users cannot choose a factory, and shall not: so it is put in the default's place, in this process alone.
    config.WorkerConfig = functools.partial(config.WorkerConfig, engine_factory=FACTORY)  # type: ignore[misc, assignment]
    return cli.run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
