"""`python -m sandbox`: serves until SIGTERM or SIGINT."""

import argparse
import asyncio
import signal

from aiohttp import web

from .app import create_app
from .listener import Listener
from .settings import Settings

STOP_PATIENCE = 0.3  # seconds that open streams get before they are ended; stopping stays well under a second


async def serve(host: str, port: int) -> None:
    listener = Listener(host, port)
    app = create_app(Settings.from_environment(), listener)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_PATIENCE)
    await runner.setup()
    await listener.open(runner)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    print(f"sandbox ready on {listener.url}", flush=True)
    await stop.wait()
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sandbox", description="A simulated Genesys Cloud organisation.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001, help="0 takes any free port (default: %(default)s)")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.host, arguments.port))


if __name__ == "__main__":
    main()
