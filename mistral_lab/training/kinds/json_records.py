"""JSON: an order, one record per line, whose customer and order number come back."""

import json

from ..scribe import Scribe, compose

CITIES = "Oslo Lima Cairo Lyon Kyoto Quito Tunis Turin Ghent Delhi Osaka Porto".split()
GOODS = "lamp chair desk clock radio kettle carpet mirror shelf ladder hammer bucket".split()
COLOURS = "red blue green white black yellow grey brown".split()
STATES = "packed sent lost returned paid open".split()


def write(scribe: Scribe) -> tuple[str, str]:
    """An order, one record per line. Returns the text and the customer's name."""
    name = scribe.name()
    number = scribe.number(100, 999)
    city, state = scribe.pair("json order", CITIES, STATES)

    def filler() -> str:
        goods, colour = scribe.pair("json item", GOODS, COLOURS)
        shop, status = scribe.pair("json stock", CITIES, STATES)
        price, count = scribe.pair("json price", range(5, 100, 5), range(1, 10))
        return scribe.pick(
            (
                json.dumps({"item": goods, "colour": colour, "price": price, "count": count, "total": price * count}),
                json.dumps({"shop": shop, "item": goods, "status": status, "ready": status in ("packed", "paid")}),
                json.dumps({"order": number, "item": goods, "colour": colour}),
            )
        )

    def mention() -> str:
        return scribe.pick(
            (
                json.dumps({"order": number, "customer": name}),
                json.dumps({"city": city, "customer": name}),
                json.dumps({"signed": name}),
            )
        )

    opening = json.dumps({"order": number, "customer": name, "city": city, "status": state})
    return compose(scribe, opening, filler, mention, "\n"), name
