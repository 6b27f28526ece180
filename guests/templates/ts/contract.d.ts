// The contract of wit/machine.wit as modules and types: what componentize-js gives a machine and expects of it.

declare module "statehouse:machine/events@0.1.0" {
  /** What watchers see. Traps in a query. */
  export function emit(kind: "put" | "delete", key: Uint8Array, value: Uint8Array): void;
}

declare module "statehouse:machine/leases@0.1.0" {
  /** Why a call throws. */
  export type Failure = "unknown-lease" | "too-many";
  export function grant(ttlMs: bigint): bigint;
  export function revoke(lease: bigint): void;
  export function attach(lease: bigint, key: Uint8Array): void;
  export function detach(key: Uint8Array): void;
  export function remaining(lease: bigint): bigint;
}

declare module "statehouse:machine/log@0.1.0" {
  export function write(level: "debug" | "info" | "warn" | "error", message: string): void;
}

/** Of stored machines. */
declare module "statehouse:machine/store@0.1.0" {
  export interface Pair {
    key: Uint8Array;
    value: Uint8Array;
  }
  export function get(key: Uint8Array): Uint8Array | undefined;
  export function getMany(keys: Uint8Array[]): (Uint8Array | undefined)[];
  export function set(key: Uint8Array, value: Uint8Array): void;
  function remove(key: Uint8Array): void;
  export { remove as delete };
  export function deleteSpan(start: Uint8Array, end: Uint8Array | undefined): void;
  export function scan(start: Uint8Array, end: Uint8Array | undefined, limit: number, backward: boolean): Pair[];
}

/** Of resident machines. */
declare module "statehouse:machine/snapshot-stream@0.1.0" {
  export function write(chunk: Uint8Array): void;
  export function read(limit: number): Uint8Array;
}

/** Where an input stands in the log. */
interface Context {
  index: bigint;
  offset: number;
  /** The log's clock, in milliseconds: the only clock there is. */
  time: bigint;
  revision: bigint;
}

/** What a query reads. */
interface View {
  index: bigint;
  time: bigint;
  revision: bigint;
}

interface LeaseEnd {
  lease: bigint;
  keys: Uint8Array[];
}

type Input =
  | { tag: "created"; val: Uint8Array }
  | { tag: "command"; val: Uint8Array }
  | { tag: "lease-ended"; val: LeaseEnd }
  | { tag: "upgraded"; val: { previous: string; argument: Uint8Array } };

/** What a machine exports as `behavior`. To refuse, it throws an object with `code`, never 0, and `message`. */
interface Behavior {
  apply(context: Context, input: Input): Uint8Array;
  query(view: View, request: Uint8Array): Uint8Array;
}

/** What a resident machine exports as `snapshot`. */
interface Snapshot {
  save(): void;
  restore(): void;
}
