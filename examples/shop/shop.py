"""A small shop: customers log in and look at their orders; what is marked `relay` lets them ask about one as well."""

import os
import secrets
from collections.abc import Callable
from functools import wraps

from flask import Flask, abort, g, redirect, render_template, request, session, stream_template, url_for
from flask.typing import ResponseReturnValue
from models import Customer, Line, Order, open_database
from sqlalchemy import select
from sqlalchemy.orm import joinedload
from werkzeug.security import check_password_hash, generate_password_hash

from server import Caller, Relay, RelayError  # relay

NO_ONE = generate_password_hash(secrets.token_hex())  # whom no one can be; takes as long to check as anyone's
INSTRUCTION = "You help a customer of a shop. Answer in a sentence or two, from this alone: "
View = Callable[..., ResponseReturnValue]

shop = Flask(__name__)
shop.secret_key = os.environ["SHOP_SECRET_KEY"]
shop.config.update(SESSION_COOKIE_SAMESITE="Lax", SESSION_COOKIE_HTTPONLY=True)
database = open_database()
relay = Relay(shop, url_prefix="/relay")  # relay


@relay.caller  # relay
def customer_who_asks() -> Caller | None:  # relay
    """Customers may ask about their own orders: each has a conversation."""
    if g.customer is None:  # relay
        return None  # relay
    return Caller(g.customer.name, tuple(conversation_of(order) for order in g.customer.orders))  # relay


def conversation_of(order: Order) -> str:
    return f"order-{order.id}"


@shop.before_request
def know_customer() -> None:
    """Before each request, the relay's as well. The database's session is over before the view begins."""
    who = select(Customer).where(Customer.id == session.get("customer")).options(joinedload(Customer.orders))
    with database() as db:
        g.customer = db.scalars(who).unique().one_or_none()


@shop.before_request
def check_form() -> None:
    """Forms carry a token of the session, so that no other site's page sends them; JSON is no form."""
    if request.method == "POST" and request.mimetype != "application/json":
        sent, kept = request.form.get("csrf", ""), session.get("csrf", "")
        if not kept or not secrets.compare_digest(sent.encode(), kept.encode()):
            abort(400)


@shop.context_processor
def for_templates() -> dict[str, str]:
    return {"csrf": session.setdefault("csrf", secrets.token_urlsafe(16))}


@shop.template_filter()
def price(cents: int) -> str:
    return f"{cents / 100:.2f} €"


def for_customers(view: View) -> View:
    """Sends to the login whoever is not logged in."""

    @wraps(view)
    def checked(**arguments: object) -> ResponseReturnValue:
        return redirect(url_for("log_in")) if g.customer is None else view(**arguments)

    return checked


def find_order(order_id: int) -> Order:
    """One of the customer's own, whole: nothing of it is loaded later. Ends the request with 404."""
    mine = select(Order).where(Order.id == order_id, Order.customer_id == g.customer.id)
    with database() as db:
        order = db.scalars(mine.options(joinedload(Order.lines).joinedload(Line.product))).unique().one_or_none()
    return order or abort(404)


@shop.get("/login")
def log_in() -> ResponseReturnValue:
    return render_template("login.html")


@shop.post("/login")
def let_in() -> ResponseReturnValue:
    with database() as db:
        customer = db.scalars(select(Customer).where(Customer.name == request.form["name"])).one_or_none()
    known = check_password_hash(customer.password_hash if customer else NO_ONE, request.form["password"])
    if customer is None or not known:
        return render_template("login.html", wrong=True), 401
    session.clear()
    session["customer"] = customer.id
    return redirect(url_for("show_orders"))


@shop.post("/logout")
def log_out() -> ResponseReturnValue:
    session.clear()
    return redirect(url_for("log_in"))


@shop.get("/")
@for_customers
def show_orders() -> ResponseReturnValue:
    return render_template("orders.html", orders=g.customer.orders)


@shop.get("/orders/<int:order_id>")
@for_customers
def show_order(order_id: int) -> ResponseReturnValue:
    order = find_order(order_id)
    instruction = INSTRUCTION + order.summary
    return render_template("order.html", order=order, conversation=conversation_of(order), instruction=instruction)


@shop.post("/orders/<int:order_id>/answer")
@for_customers
def show_answer(order_id: int) -> ResponseReturnValue:
    """A page without scripts, into which the answer streams."""
    order, question = find_order(order_id), request.form["question"]
    messages = [
        {"role": "system", "content": INSTRUCTION + order.summary},
        {"role": "user", "content": question},
    ]
    answer = relay.ask(conversation_of(order), messages)  # relay
    page = stream_template("answer.html", order=order, question=question, answer=answer)
    return page, {"X-Accel-Buffering": "no"}  # for nginx: each piece goes out at once


@shop.errorhandler(RelayError)  # relay
def show_refusal(error: RelayError) -> ResponseReturnValue:  # relay
    return render_template("trouble.html", words=error.sentence), error.status  # relay


@shop.errorhandler(404)
def show_no_page(error: Exception) -> ResponseReturnValue:
    return render_template("trouble.html", words="The shop has no such page."), 404
