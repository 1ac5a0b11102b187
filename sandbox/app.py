"""The sandbox put together."""

from aiohttp import web

from .answers import Answers
from .calls import Calls
from .control import Control
from .conversations import Conversations
from .faults import FaultPlan
from .gateway import Gateway
from .listener import Listener
from .oauth import OAuth, Tokens
from .platform import Platform
from .rate import RateLimit
from .settings import Settings
from .transcript import Transcript

MAX_BODY = 8 * 1024 * 1024  # bytes; scripts may be long


def create_app(settings: Settings, listener: Listener) -> web.Application:
    calls, faults, answers = Calls(), FaultPlan(), Answers(settings.pace)
    tokens = Tokens(settings.token_life)
    conversations = Conversations()
    transcript = Transcript(tokens, conversations, faults, calls)
    gateway = Gateway(settings, tokens, answers, faults, calls)
    rate = RateLimit(settings.rate_limit)
    platform = Platform(tokens, conversations, faults, calls, rate)
    control = Control(answers, faults, calls, tokens, conversations, transcript, rate, listener)
    app = web.Application(client_max_size=MAX_BODY)
    app.add_routes(
        [
            web.post("/oauth/token", OAuth(settings, tokens, faults, calls).token),
            web.post("/api/v2/ai/llm/gateway/chat", gateway.chat),
            web.get("/v2/conversations/websockets", transcript.open),
            *platform.routes(),
            *control.routes(),
        ]
    )

    async def close_links(_: web.Application) -> None:
        await transcript.close_all()

    app.on_shutdown.append(close_links)
    return app
