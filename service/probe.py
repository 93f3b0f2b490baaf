"""`python -m service.probe`: ask the service of this machine whether it is ready; for healthchecks.

Exits with 0 when `/health/ready` answers 200, with 1 and the reason otherwise. It reads the
same environment as the service (where it listens, and whether with TLS), and imports only
the standard library: it is started every few seconds.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys

TIMEOUT_S = 4.0
ANY_ADDRESS = {"", "0.0.0.0", "::"}  # noqa: S104 - what a service listens on, asked on loopback


def main() -> int:
    """The exit status."""
    host = os.environ.get("MEXMA_HOST", "127.0.0.1")
    port = int(os.environ.get("MEXMA_PORT") or os.environ.get("PORT") or 8080)
    asked = "127.0.0.1" if host in ANY_ADDRESS else host
    if os.environ.get("MEXMA_TLS_CERT"):
        # It asks itself, by an address that no certificate need name.
        context = ssl._create_unverified_context()  # noqa: S323
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            asked, port, timeout=TIMEOUT_S, context=context
        )
    else:
        connection = http.client.HTTPConnection(asked, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/health/ready")
        answer = connection.getresponse()
        body = answer.read(2000).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer from {asked} port {port}: {error}", file=sys.stderr)
        return 1
    if answer.status != http.client.OK:
        print(body, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
