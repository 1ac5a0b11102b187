"""An app of someone's own, with logins, forms and error pages, in which the relay is mounted; at /outer once more."""

from flask import Flask, Response, abort, request, stream_template_string, stream_with_context
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from server import Caller, Done, Failure, Relay, RelayError

app = Flask(__name__)
relay = Relay(app, url_prefix="/relay", page=True)
TEMPLATE = "<p>{% for event in answer %}{{ event.text or event.error or event.status }}|{% endfor %}</p>"


@relay.caller
def who():
    name = request.cookies.get("user")
    return Caller(name, ("c-open*",)) if name == "guest" else name


@app.route("/ask", methods=["GET", "POST"])
def ask():
    answer = relay.ask(request.args["conversation"], request.args["prompt"])

    def lines():
        for event in answer:
            match event:
                case Failure():
                    yield f"failure {event.code} {request.path}\n"
                case Done():
                    yield f"done {event.status} {request.path}\n"
                case _:
                    yield f"token {event.text} {request.path}\n"

    return Response(stream_with_context(lines()), headers={"X-Stream-Id": answer.id})


@app.get("/template")
def template():
    return stream_template_string(TEMPLATE, answer=relay.ask(request.args["conversation"], request.args["prompt"]))


@app.get("/unread")
def unread():
    """Asks, and throws the answer away."""
    return relay.ask(request.args["conversation"], request.args["prompt"]).id


@app.get("/as/<name>")
def ask_as(name):
    answer = relay.ask(None, [{"role": "user", "content": name}], caller=name)
    return "".join(getattr(event, "text", "") for event in answer)


@app.get("/missing")
def missing():
    abort(404)


@app.errorhandler(404)
def not_found(error):
    return "the shop's own page", 404


@app.errorhandler(RelayError)
def refused(error):
    return f"the shop's own words: {error.code}", error.status


@app.after_request
def mark(response):
    response.headers["X-Shop"] = "yes"
    return response


application = DispatcherMiddleware(app, {"/outer": app})
