"""A number that is added to, with its state in the component's own memory.

A command is a whole number in decimal (`5`, `-5`) to add, or one to add for a time in milliseconds (`5 for 1500`),
after which it is taken back. The answer is the sum. A query answers the sum, whatever it asks. The configuration is
the number to start from, if there is any. Watchers see the sum under the key `sum`, whenever something is added or
taken back.

A refusal must leave no trace in memory, and only we can see to that: what can be refused comes before what changes.
"""

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports import snapshot_stream
from wit_world.imports.types import Context, Input, Input_Command, Input_Created, Input_LeaseEnded, View

import counter

total = 0


class Behavior(exports.Behavior):
    def apply(self, context: Context, input: Input) -> bytes:
        match input:
            case Input_Created(start):
                return become(counter.number(start) if start else 0)
            case Input_Command(text):
                step, ms = counter.command(text)
                value = counter.in_range(total + step)
                if ms is not None:
                    counter.hold(step, ms)
                return become(value)
            # A client's own lease held nothing here.
            case Input_LeaseEnded(ended) if ended.keys:
                return become(counter.without(total, ended))
            case _:
                return b""

    def query(self, view: View, request: bytes) -> bytes:
        return b"%d" % total


class Snapshot(exports.Snapshot):
    def save(self) -> None:
        snapshot_stream.write(total.to_bytes(8, "little", signed=True))

    def restore(self) -> None:
        global total
        kept = b""
        while chunk := snapshot_stream.read(8):
            kept += chunk
        if len(kept) != 8:
            raise Err(f"{len(kept)} bytes, 8 are expected")
        total = int.from_bytes(kept, "little", signed=True)


def become(value: int) -> bytes:
    global total
    total = value
    return counter.told(value)
