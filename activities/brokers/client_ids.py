"""Client order ids: the name of an order at a venue, in the letters and the length that venues take.

An order id of the form `order:<12 hexadecimal digits>:<32 hexadecimal digits>` is 176 bits, which 30 letters
and digits write. So each has one client order id, whoever computes it and whenever, and each client order id
leads back to its order, without a table that a crash could lose.
"""

import re
import string

LENGTH = 30
"""Letters and digits of a client order id: 62^30 is more than 2^176. Venues take 32 to 36 signs."""

_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_ORDER_ID = re.compile(r"order:([0-9a-f]{12}):([0-9a-f]{32})")
_CLIENT_ID = re.compile(rf"[0-9A-Za-z]{{{LENGTH}}}")
_BITS = 176


def client_id(order_id: str) -> str | None:
    """Return the client order id of an order; None for an id of another form, which has none."""
    found = _ORDER_ID.fullmatch(order_id)
    if found is None:
        return None
    number, digits = int("".join(found.groups()), 16), ""
    for _ in range(LENGTH):
        number, digit = divmod(number, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return digits


def order_id_of(client_id: str) -> str | None:
    """Return the id of the order that has this client order id; None where no order can have it."""
    if not _CLIENT_ID.fullmatch(client_id):
        return None
    number = 0
    for digit in client_id:
        number = number * len(_DIGITS) + _DIGITS.index(digit)
    if number >> _BITS:
        return None
    hexadecimal = f"{number:044x}"
    return f"order:{hexadecimal[:12]}:{hexadecimal[12:]}"
