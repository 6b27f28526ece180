"""A number that is added to, with its state in the host's store.

A command is a whole number in decimal (`5`, `-5`) to add, or one to add for a time in milliseconds (`5 for 1500`),
after which it is taken back. The answer is the sum. A query answers the sum, whatever it asks. The configuration is
the number to start from, if there is any. Watchers see the sum under the key `sum`, whenever something is added or
taken back.

Nothing may be kept in globals: each batch of inputs runs in a fresh instance.
"""

from wit_world import exports
from wit_world.imports import store
from wit_world.imports.types import Context, Input, Input_Command, Input_Created, Input_LeaseEnded, View

import counter

SUM = b"sum"


class Behavior(exports.Behavior):
    def apply(self, context: Context, input: Input) -> bytes:
        match input:
            case Input_Created(start):
                return become(counter.number(start) if start else 0)
            case Input_Command(text):
                step, ms = counter.command(text)
                value = counter.in_range(current() + step)
                if ms is not None:
                    counter.hold(step, ms)
                return become(value)
            # A client's own lease held nothing here.
            case Input_LeaseEnded(ended) if ended.keys:
                return become(counter.without(current(), ended))
            case _:
                return b""

    def query(self, view: View, request: bytes) -> bytes:
        return b"%d" % current()


def current() -> int:
    kept = store.get(SUM)
    return int.from_bytes(kept, "big", signed=True) if kept is not None else 0


def become(value: int) -> bytes:
    store.set(SUM, value.to_bytes(8, "big", signed=True))
    return counter.told(value)
