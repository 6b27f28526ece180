"""Stands in for the host in tests: the modules that componentize-py would provide. Import it before the machine."""

import enum
import sys
import types
from dataclasses import dataclass


@dataclass(frozen=True)
class Err(Exception):
    value: object


class Kind(enum.Enum):
    PUT = 0
    DELETE = 1


@dataclass
class Context:
    index: int = 1
    offset: int = 0
    time: int = 1_700_000_000_000
    revision: int = 2


@dataclass
class View:
    index: int = 1
    time: int = 1_700_000_000_000
    revision: int = 2


@dataclass
class LeaseEnd:
    lease: int
    keys: list[bytes]


@dataclass
class Refusal:
    code: int
    message: str


@dataclass
class Input_Created:
    value: bytes


@dataclass
class Input_Command:
    value: bytes


@dataclass
class Input_LeaseEnded:
    value: LeaseEnd


@dataclass
class Input_Upgraded:
    value: object


# What the machine has done, and what is left of its snapshot.
events: list[tuple[Kind, bytes, bytes]] = []
attached: dict[int, list[bytes]] = {}
store: dict[bytes, bytes] = {}
stream = bytearray()


def grant(ttl_ms: int) -> int:
    lease = len(attached) + 1
    attached[lease] = []
    return lease


def read(limit: int) -> bytes:
    chunk = bytes(stream[:limit])
    del stream[:limit]
    return chunk


def reset() -> None:
    for kept in (events, attached, store, stream):
        kept.clear()


def module(name: str, **names: object) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__dict__.update(names)
    sys.modules[name] = made
    return made


module("componentize_py_types", Err=Err)
types_ = module(
    "wit_world.imports.types",
    Context=Context,
    View=View,
    LeaseEnd=LeaseEnd,
    Refusal=Refusal,
    Input=object,
    Input_Created=Input_Created,
    Input_Command=Input_Command,
    Input_LeaseEnded=Input_LeaseEnded,
    Input_Upgraded=Input_Upgraded,
)
imports = module(
    "wit_world.imports",
    types=types_,
    events=types.SimpleNamespace(Kind=Kind, emit=lambda *event: events.append(event)),
    leases=types.SimpleNamespace(grant=grant, attach=lambda lease, key: attached[lease].append(key)),
    store=types.SimpleNamespace(get=store.get, set=store.__setitem__),
    snapshot_stream=types.SimpleNamespace(write=stream.extend, read=read),
)
exports = module("wit_world.exports", Behavior=object, Snapshot=object)
module("wit_world", imports=imports, exports=exports)
