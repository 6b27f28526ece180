"""What a counter understands and computes, apart from where its state is."""

import re

from componentize_py_types import Err
from wit_world.imports import events, leases
from wit_world.imports.types import LeaseEnd, Refusal

HOLD_MS_MAX = 86_400_000


def refusal(code: int, message: str) -> Err:
    """To be raised: the input changes nothing, and the client is told why. Codes are yours, but never 0."""
    return Err(Refusal(code, message))


def command(text: bytes) -> tuple[int, int | None]:
    """Reads `5`, or `5 for 1500`: what to add, and for how many milliseconds if not for good."""
    step, held, time = text.partition(b" for ")
    amount = number(step)
    if not held:
        return amount, None
    ms = int(time) if re.fullmatch(rb"[0-9]{1,19}", time) else 0
    if not 1 <= ms <= HOLD_MS_MAX:
        raise refusal(3, "the time is a whole number of milliseconds from 1 to 86400000")
    return amount, ms


def number(text: bytes) -> int:
    """Reads a whole number: a sign or none, and 1 to 19 digits."""
    if re.fullmatch(rb"[+-]?[0-9]{1,19}", text) and fits(int(text)):
        return int(text)
    raise refusal(1, "a whole number between -2^63 and 2^63-1 is expected, like 5 or -5")


def fits(value: int) -> bool:
    return -(2**63) <= value < 2**63


def in_range(value: int) -> int:
    if not fits(value):
        raise refusal(2, "the sum would leave the range of -2^63 to 2^63-1")
    return value


def hold(step: int, ms: int) -> None:
    """A lease that ends after `ms`. What is to be taken back then is in the name of the key attached to it."""
    try:
        lease = leases.grant(ms)
        leases.attach(lease, b"%d %d" % (lease, step))
    except Err:
        raise refusal(4, "there are as many numbers held as the machine may hold") from None


def without(value: int, ended: LeaseEnd) -> int:
    """The sum without what was held by the lease that ended."""
    for key in ended.keys:
        value = in_range(value - number(key.partition(b" ")[2]))
    return value


def told(value: int) -> bytes:
    """Tells watchers and the client."""
    text = b"%d" % value
    events.emit(events.Kind.PUT, b"sum", text)
    return text
