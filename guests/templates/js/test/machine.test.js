// The counter's tests: npm test

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { behavior } from "../machine.js";
import { attached, events } from "./host.js";

const context = { index: 1n, offset: 0, time: 1_700_000_000_000n, revision: 2n };
const bytes = (text) => new TextEncoder().encode(text);
const text = (bytes) => new TextDecoder().decode(bytes);
const command = (what) => text(behavior.apply(context, { tag: "command", val: bytes(what) }));
const query = () => text(behavior.query({ index: 1n, time: context.time, revision: 2n }, bytes("")));

beforeEach(() => behavior.apply(context, { tag: "created", val: bytes("40") }));

test("what is added is answered and seen by watchers", () => {
  assert.equal(command("2"), "42");
  assert.equal(query(), "42");
  assert.deepEqual(events.at(-1), ["put", "sum", "42"]);
});

test("what is not understood is refused and changes nothing", () => {
  const seen = events.length;
  const codes = { two: 1, "": 1, "9223372036854775808": 1, "0x10": 1, "9223372036854775807": 2, "1 for 0": 3 };
  for (const [what, code] of Object.entries(codes)) {
    assert.throws(() => command(what), (refusal) => refusal.code === code && refusal.message.length > 0, what);
  }
  assert.equal(query(), "40");
  assert.equal(events.length, seen);
});

test("what is held is taken back when its time is over", () => {
  assert.equal(command("5 for 1500"), "45");
  const [lease, keys] = [...attached].at(-1);
  assert.equal(text(behavior.apply(context, { tag: "lease-ended", val: { lease, keys } })), "40");
  const seen = events.length;
  assert.equal(text(behavior.apply(context, { tag: "lease-ended", val: { lease: 9n, keys: [] } })), "");
  assert.equal(events.length, seen);
});
