"""The sandbox, with tokens that are the time at which they are sent: `python -m bench.gateway --port 0`.

The clock is the system's monotonic one, the same in every process of a machine: who reads a token knows its age.
"""

import time

from sandbox.__main__ import main
from sandbox.chunks import Chunks


class Stamped(Chunks):
    def token(self, _: str) -> bytes:
        return super().token(f"{time.monotonic_ns()} ")


if __name__ == "__main__":
    from sandbox import gateway

    gateway.Chunks = Stamped
    main()
