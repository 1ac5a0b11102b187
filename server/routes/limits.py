"""What a caller is told of its rate, in headers.

They are those of draft-ietf-httpapi-ratelimit-headers up to its version 06, which gateways send and clients read. Later
versions put the same into two structured fields, whose syntax has changed with nearly each of them; it is no RFC yet.
"""

import math

from flask import Response, after_this_request

from ..access.allowance import Standing


def tell(standing: Standing | None) -> None:
    """Adds the headers to the response of the request that is being answered."""
    if standing is None:
        return

    @after_this_request
    def add(response: Response) -> Response:
        response.headers.update(headers(*standing))
        return response


def headers(limit: int, left: int, reset: float) -> dict[str, str]:
    """`reset` is in seconds until there is one more; whole ones are told, and a client that waits them finds it."""
    return {
        "RateLimit-Limit": str(limit),
        "RateLimit-Remaining": str(left),
        "RateLimit-Reset": str(math.ceil(reset)),
    }
