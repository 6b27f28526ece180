// A number that is added to, with its state in the host's store.
//
// A command is a whole number in decimal (`5`, `-5`) to add, or one to add for a time in milliseconds (`5 for 1500`),
// after which it is taken back. The answer is the sum. A query answers the sum, whatever it asks. The configuration is
// the number to start from, if there is any. Watchers see the sum under the key `sum`, whenever something is added or
// taken back.
//
// Nothing may be kept in globals: each batch of inputs runs in a fresh instance.

import { get, set } from "statehouse:machine/store@0.1.0";

import * as counter from "./counter.js";

const KEY = new TextEncoder().encode("sum");

export const behavior = {
  apply(context, input) {
    switch (input.tag) {
      case "created":
        return become(counter.start(input.val));
      case "command": {
        const { step, holdMs } = counter.command(input.val);
        const next = counter.inRange(sum() + step);
        if (holdMs !== undefined) counter.hold(step, holdMs);
        return become(next);
      }
      case "lease-ended":
        // A client's own lease held nothing here.
        if (input.val.keys.length === 0) return new Uint8Array();
        return become(counter.without(sum(), input.val));
      default:
        return new Uint8Array();
    }
  },

  query(view, request) {
    return counter.told(sum());
  },
};

/** The state: 8 bytes, the highest first. */
function sum() {
  const kept = get(KEY);
  return kept ? new DataView(kept.buffer, kept.byteOffset, 8).getBigInt64(0) : 0n;
}

function become(next) {
  const state = new Uint8Array(8);
  new DataView(state.buffer).setBigInt64(0, next);
  set(KEY, state);
  return counter.tell(next);
}
