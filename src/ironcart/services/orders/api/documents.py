"""The routes with their documentation."""

from decimal import Decimal

from ironcart.events import CURRENCY_DEFAULT
from ironcart.services.orders.api.headers import WAIT_S_MAX
from ironcart.services.orders.api.routes import Api
from ironcart.services.orders.api.views import OrderEvent, OrderPage, OrderView
from ironcart.services.orders.handlers.accept import Accepted
from ironcart.services.orders.handlers.check import PostItem, PostOrder
from ironcart.services.orders.handlers.table import STATUSES
from ironcart.toolkit.envelope import NAME_PATTERN
from ironcart.toolkit.http import Endpoint, Operation, Parameter, Scope
from ironcart.toolkit.http.keys import KEY_PATTERN
from ironcart.toolkit.http.routes import PAGING

# A storefront sees and cancels the orders that it placed; what is another's is not there for it.
SHOP = Scope.STOREFRONT


def endpoints(api: Api) -> list[Endpoint]:
    """Every route, with its documentation and its door."""
    text, one = {"type": "string"}, "/orders/{order_id}"
    order_id = Parameter("order_id", "path", "the order", text | {"pattern": NAME_PATTERN})
    example = PostOrder(
        "C-1", [PostItem("SKU-1", 2, Decimal("19.99"))], CURRENCY_DEFAULT, email="a@b.example"
    )
    key = text | {"pattern": KEY_PATTERN}
    waiting = f"wait=N: wait N seconds, at most {WAIT_S_MAX:g}, for the order to end, and show it"
    posting = Operation(
        "Place an order",
        {202: Accepted},
        (400, 413, 415, 422, 429),
        (
            Parameter("Idempotency-Key", "header", "the same key is the same order", key),
            Parameter("Prefer", "header", waiting, text),
        ),
        PostOrder,
        example,
        headers={202: {"Location": "the order"}},
    )
    listing = Operation(
        "List orders",
        {200: OrderPage},
        (400,),
        (
            Parameter("status", "query", "only these", {"type": "string", "enum": list(STATUSES)}),
            Parameter("customer_id", "query", "only theirs", text | {"pattern": NAME_PATTERN}),
            *PAGING,
        ),
    )
    cancelling = Operation("Cancel an order", {202: OrderView}, (400, 404, 409), (order_id,))
    following = Operation(
        "Follow an order",
        {200: OrderEvent},
        (400, 404),
        (order_id, Parameter("Last-Event-ID", "header", "resume after this version", text)),
        media_type="text/event-stream",
    )
    getting = Operation("See an order", {200: OrderView}, (400, 404), (order_id,))
    return [
        Endpoint("POST", "/orders", api.post_order, posting, api.door.enter, SHOP),
        Endpoint("GET", "/orders", api.list_orders, listing, allows=SHOP),
        Endpoint("GET", one, api.get_order, getting, allows=SHOP),
        Endpoint("POST", f"{one}/cancel", api.cancel_order, cancelling, allows=SHOP),
        Endpoint("GET", f"{one}/events", api.follow_order, following, allows=SHOP),
    ]
