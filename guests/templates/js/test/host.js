// Stands in for the host in tests: every interface of the contract, in one module.

export const events = [];
export const attached = new Map();
const store = new Map();
let stream = [];

const name = (key) => new TextDecoder().decode(key);

export function emit(kind, key, value) {
  events.push([kind, name(key), name(value)]);
}

export function grant(ttlMs) {
  const lease = BigInt(attached.size + 1);
  attached.set(lease, []);
  return lease;
}

export function attach(lease, key) {
  attached.get(lease).push(key);
}

export function get(key) {
  return store.get(name(key));
}

export function set(key, value) {
  store.set(name(key), value);
}

export function write(chunk) {
  stream.push(...chunk);
}

export function read(limit) {
  return Uint8Array.from(stream.splice(0, limit));
}
