"""Puts a server through two Python clients of others: etcd3 (gRPC) and etcd3gw (the JSON gateway).

    client.py HOST PORT

Prints what went wrong, and exits with 1 if anything did.
"""

import os
import sys
import threading
import traceback

# The generated code of etcd3 is of before protobuf 3.20.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")

import etcd3  # noqa: E402
import etcd3.events  # noqa: E402
import etcd3gw  # noqa: E402


def expect(holds, what):
    if not holds:
        raise AssertionError(what)


def keys(client):
    for number in range(5):
        client.put(f"python/{number}", str(number))
    value, meta = client.get("python/3")
    expect(value == b"3" and meta.version == 1, (value, meta))
    found = [kv.key for _, kv in client.get_prefix("python/", sort_order="descend", sort_target="key")]
    expect(found == [f"python/{number}".encode() for number in (4, 3, 2, 1, 0)], found)
    expect(client.put_if_not_exists("python/3", "x") is False, "there was a key")
    expect(client.replace("python/3", "3", "three"), "the value was another")
    expect(client.delete("python/3"), "there was no key")
    expect(client.delete_prefix("python/").deleted == 4, "not four keys")


def transactions(client):
    done, answers = client.transaction(
        compare=[client.transactions.version("python-txn") == 0],
        success=[client.transactions.put("python-txn", "1"), client.transactions.get("python-txn")],
        failure=[client.transactions.delete("python-txn")],
    )
    expect(done and len(answers) == 2, (done, answers))


def watches(client):
    events, cancel = client.watch_prefix("python-watch/", prev_kv=True)

    def write():
        client.put("python-watch/a", "1")
        client.delete("python-watch/a")

    threading.Timer(0.2, write).start()
    first, second = next(events), next(events)
    expect(isinstance(first, etcd3.events.PutEvent) and first.value == b"1", first)
    expect(isinstance(second, etcd3.events.DeleteEvent) and second.prev_value == b"1", second)
    cancel()


def leases(client):
    lease = client.lease(600)
    client.put("python-lease", "1", lease=lease)
    expect(lease.granted_ttl == 600 and lease.keys == [b"python-lease"], lease.keys)
    expect([answer.TTL for answer in lease.refresh()] == [600], "not kept alive")
    lease.revoke()
    expect(client.get("python-lease") == (None, None), "the key outlived its lease")


def locks(client):
    held = client.lock("python-lock", ttl=60)
    expect(held.acquire(), "a free lock")
    expect(not client.lock("python-lock", ttl=60).acquire(timeout=1), "two have the lock")
    expect(held.is_acquired() and held.release(), "not the holder's")
    with client.lock("python-lock", ttl=60) as again:
        expect(again.is_acquired(), "a free lock")


def cluster(client):
    status = client.status()
    expect(status.leader is not None and status.version.startswith("3."), status)
    expect(len(list(client.members)) == 1, "not one member")
    expect(list(client.list_alarms()) == [], "alarms")
    client.defragment()
    client.hash()


def compaction(client):
    for number in range(3):
        client.put("python-compact", str(number))
    revision = client.get("python-compact")[1].mod_revision
    client.compact(revision)
    try:
        client.compact(revision)
    except Exception as why:
        expect("compacted" in str(why), why)
    else:
        raise AssertionError("compacted twice")


def gateway_keys(client):
    expect(client.put("gateway/a", "1"), "not put")
    expect(client.get("gateway/a") == [b"1"], client.get("gateway/a"))
    expect(client.create("gateway/a", "2") is False, "there was a key")
    expect(client.replace("gateway/a", "1", "2"), "the value was another")
    found = client.get_prefix("gateway/", sort_order="descend", sort_target="key")
    expect([(value, meta["key"]) for value, meta in found] == [(b"2", b"gateway/a")], found)
    expect(client.delete("gateway/a"), "there was no key")


def gateway_leases(client):
    lease = client.lease(ttl=600)
    client.put("gateway-lease", "1", lease=lease)
    expect(lease.ttl() > 500 and lease.keys() == [b"gateway-lease"], (lease.ttl(), lease.keys()))
    expect(lease.refresh() == 600, "not kept alive")
    expect(lease.revoke() and client.get("gateway-lease") == [], "the key outlived its lease")


def gateway_locks(client):
    with client.lock("gateway-lock", ttl=60) as held:
        expect(held.is_acquired(), "a free lock")
        expect(not client.lock("gateway-lock", ttl=60).acquire(), "two have the lock")


def gateway_watches(client):
    events, cancel = client.watch_prefix("gateway-watch/")
    threading.Timer(0.3, lambda: client.put("gateway-watch/a", "1")).start()
    event = next(events)
    expect(event["kv"]["key"] == b"gateway-watch/a" and event["kv"]["value"] == b"1", event)
    cancel()


def gateway_cluster(client):
    expect(client.status()["version"].startswith("3."), client.status())
    expect(len(client.members()) == 1, client.members())


def main():
    host, port = sys.argv[1:]
    by_grpc = etcd3.client(host=host, port=int(port), timeout=30)
    by_json = etcd3gw.client(host=host, port=int(port), timeout=30, api_path="/v3/")
    failed = 0
    for checks, client in (
        ((keys, transactions, watches, leases, locks, cluster, compaction), by_grpc),
        ((gateway_keys, gateway_leases, gateway_locks, gateway_watches, gateway_cluster), by_json),
    ):
        for check in checks:
            try:
                check(client)
                print(f"ok     {check.__name__}", flush=True)
            except Exception:
                failed += 1
                print(f"FAILED {check.__name__}: {traceback.format_exc()}", flush=True)
    if failed:
        print(f"{failed} failed")
    # Threads of a client may still wait for events.
    sys.stdout.flush()
    os._exit(1 if failed else 0)


# Whoever waits for an event that never comes is ended.
def give_up():
    print("FAILED: no end within 120 seconds", flush=True)
    os._exit(1)


watchdog = threading.Timer(120, give_up)
watchdog.daemon = True
watchdog.start()
main()
