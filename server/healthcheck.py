"""`python -m server.healthcheck [URL]`: 0 if the server on this machine is ready. For HEALTHCHECK in a container.

Without a URL it follows YOLOV9_PORT and YOLOV9_TLS_CERTIFICATE. Standard library only: it runs every few seconds.
"""

from __future__ import annotations

import os
import ssl
import sys
import urllib.error
import urllib.request

TIMEOUT_S = 2.0


def main(arguments: list[str]) -> int:
    """0: ready; 1: not, with the reason on stderr, which `docker inspect` shows."""
    scheme = "https" if os.environ.get("YOLOV9_TLS_CERTIFICATE") else "http"
    url = arguments[0] if arguments else f"{scheme}://127.0.0.1:{os.environ.get('YOLOV9_PORT') or 8080}/readyz"
    context = ssl.create_default_context()
    # The certificate is for another name than 127.0.0.1, and nothing secret is sent or believed here.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        urllib.request.urlopen(url, timeout=TIMEOUT_S, context=context).close()
    except urllib.error.HTTPError as error:
        print(f"{error.code}: {error.read(1000).decode(errors='replace')}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
