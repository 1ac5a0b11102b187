"""Someone who comes to a relay that asks who it is."""

from urllib.parse import parse_qs, urlsplit

import requests

from .conftest import question

SSE, JSON = "text/event-stream", "application/json"


class Visitor:
    """Someone with a key or token, or with nothing."""

    def __init__(self, relay, secret=None):
        self.relay = relay
        self.headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}

    def ask(self, prompt, conversation="", place="/streams", **headers):
        return self.post(place, question(prompt, conversation), **headers)

    def post(self, place, body, **headers):
        return requests.post(self.relay.url + place, json=body, headers=self.headers | headers, timeout=20)

    def begin(self, prompt, conversation="", **headers):
        """What POST /streams answers: id and url."""
        answer = self.ask(prompt, conversation, **headers)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def get(self, url, accept=JSON, **options):
        headers = self.headers | {"Accept": accept}
        return requests.get(self.relay.url + url, headers=headers, timeout=20, **options)

    def delete(self, url):
        return requests.delete(self.relay.url + url, headers=self.headers, timeout=20)

    def list(self, conversation):
        return self.get(f"/conversations/{conversation}/streams")


def refusal(answer):
    """All of an answer by which one refusal could be told from another."""
    return answer.status_code, answer.content, {name: answer.headers[name] for name in answer.headers if name != "Date"}


def path_of(stream):
    return f"/streams/{stream['id']}"


def ticket_of(stream):
    return parse_qs(urlsplit(stream["url"]).query)["ticket"][0]


def with_ticket(stream, ticket):
    return f"{path_of(stream)}?ticket={ticket}"
