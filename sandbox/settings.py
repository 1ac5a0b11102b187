"""What the environment sets."""

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    client_id: str = "sandbox-client"
    client_secret: str = "sandbox-secret"  # noqa: S105 - the documented default, good for nothing but this sandbox
    token_life: float = 3600.0  # seconds; the expires_in of each token
    pace: float = 0.035  # seconds between tokens
    rate_limit: int = 300  # platform requests a minute, as Genesys Cloud publishes it
    model_url: str = ""  # base URL of an OpenAI-compatible server; empty: built-in answers
    model: str = "llama3.2"
    model_key: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Reads `SANDBOX_*`; raises ValueError for a number that is none."""
        default = cls()
        return cls(
            client_id=environment.get("SANDBOX_CLIENT_ID", default.client_id),
            client_secret=environment.get("SANDBOX_CLIENT_SECRET", default.client_secret),
            token_life=float(environment.get("SANDBOX_TOKEN_LIFE", default.token_life)),
            pace=float(environment.get("SANDBOX_PACE_MS", default.pace * 1000)) / 1000,
            rate_limit=int(environment.get("SANDBOX_RATE_LIMIT", default.rate_limit)),
            model_url=environment.get("SANDBOX_MODEL_URL", "").rstrip("/"),
            model=environment.get("SANDBOX_MODEL", default.model),
            model_key=environment.get("SANDBOX_MODEL_KEY", ""),
        )
