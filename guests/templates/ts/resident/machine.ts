// A number that is added to, with its state in the component's own memory.
//
// A command is a whole number in decimal (`5`, `-5`) to add, or one to add for a time in milliseconds (`5 for 1500`),
// after which it is taken back. The answer is the sum. A query answers the sum, whatever it asks. The configuration is
// the number to start from, if there is any. Watchers see the sum under the key `sum`, whenever something is added or
// taken back.
//
// A refusal must leave no trace in memory, and only we can see to that: what can be refused comes before what changes.

import { read, write } from "statehouse:machine/snapshot-stream@0.1.0";

import * as counter from "./counter.js";

let sum = 0n;

export const behavior: Behavior = {
  apply(context, input) {
    switch (input.tag) {
      case "created":
        return become(counter.start(input.val));
      case "command": {
        const { step, holdMs } = counter.command(input.val);
        const next = counter.inRange(sum + step);
        if (holdMs !== undefined) counter.hold(step, holdMs);
        return become(next);
      }
      case "lease-ended":
        // A client's own lease held nothing here.
        if (input.val.keys.length === 0) return new Uint8Array();
        return become(counter.without(sum, input.val));
      default:
        return new Uint8Array();
    }
  },

  query(view, request) {
    return counter.told(sum);
  },
};

export const snapshot: Snapshot = {
  /** The whole state: 8 bytes, the lowest first. */
  save() {
    const state = new Uint8Array(8);
    new DataView(state.buffer).setBigInt64(0, sum, true);
    write(state);
  },

  restore() {
    const kept: number[] = [];
    for (let chunk = read(8); chunk.length > 0; chunk = read(8)) kept.push(...chunk);
    if (kept.length !== 8) throw `${kept.length} bytes, 8 are expected`;
    sum = new DataView(Uint8Array.from(kept).buffer).getBigInt64(0, true);
  },
};

function become(next: bigint): Uint8Array {
  sum = next;
  return counter.tell(next);
}
