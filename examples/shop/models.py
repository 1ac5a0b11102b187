"""What the shop keeps: customers, products, orders."""

import os
from datetime import UTC, datetime

from sqlalchemy import ForeignKey, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker
from werkzeug.security import generate_password_hash

PASSWORD = "correct horse"  # noqa: S105 - of both customers below, for a look


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    password_hash: Mapped[str]
    orders: Mapped[list["Order"]] = relationship(back_populates="customer", order_by="Order.id")


class Product(Base):
    __tablename__ = "products"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    cents: Mapped[int]


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"))
    placed: Mapped[datetime]
    state: Mapped[str]
    customer: Mapped[Customer] = relationship(back_populates="orders")
    lines: Mapped[list["Line"]] = relationship(order_by="Line.id")

    @property
    def summary(self) -> str:
        """One sentence, for the model."""
        products = ", ".join(f"{line.count} x {line.product.name}" for line in self.lines)
        return f"Order {self.id}: {products}; placed on {self.placed:%d %B %Y}; {self.state}."

    @property
    def cents(self) -> int:
        return sum(line.count * line.product.cents for line in self.lines)


class Line(Base):
    __tablename__ = "lines"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
    product_id: Mapped[int] = mapped_column(ForeignKey("products.id"))
    count: Mapped[int]
    product: Mapped[Product] = relationship()


def open_database() -> sessionmaker[Session]:
    """Few connections, as to a database where they are dear: a page that streams for minutes must hold none."""
    engine = create_engine(os.environ.get("SHOP_DATABASE", "sqlite:///shop.db"), pool_size=2, max_overflow=0)
    return sessionmaker(engine, expire_on_commit=False)


def fill() -> None:
    """Makes the tables, and two customers with an order each, unless they are there."""
    with open_database()() as session:
        Base.metadata.create_all(session.get_bind())
        if session.scalars(select(Customer)).first() is not None:
            return
        mug, lamp = Product(name="Mug", cents=1200), Product(name="Desk lamp", cents=4900)
        for name, product, state in (("ann", mug, "shipped"), ("bob", lamp, "being packed")):
            order = Order(placed=datetime(2026, 3, 2, tzinfo=UTC), state=state, lines=[Line(product=product, count=2)])
            session.add(Customer(name=name, password_hash=generate_password_hash(PASSWORD), orders=[order]))
        session.commit()


if __name__ == "__main__":
    fill()
