"""The one failure that a caller of this client meets."""

PASSING = frozenset({0, 408, 429, 500, 502, 503, 504})  # statuses after which the same call may succeed
MAX_RETRY_AFTER = 60.0  # seconds; who asks for more is not waited for


class RelayError(Exception):
    """What the relay, or the way to it, refused: `sentence` for people, `code` for programs.

    `status` is HTTP's, 0 where no answer came; `retry_after` is in seconds.
    """

    def __init__(
        self, sentence: str, code: str = "unreachable", status: int = 0, retry_after: float | None = None
    ) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.code = code
        self.status = status
        self.retry_after = retry_after

    @property
    def passes(self) -> bool:
        """Whether the same call may succeed before long."""
        return self.status in PASSING and (self.retry_after or 0.0) <= MAX_RETRY_AFTER
