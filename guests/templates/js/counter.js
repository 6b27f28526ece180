// What a counter understands and computes, apart from where its state is.

import { emit } from "statehouse:machine/events@0.1.0";
import { attach, grant } from "statehouse:machine/leases@0.1.0";

const HOLD_MS_MAX = 86_400_000n;
const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** Thrown, it says why an input changes nothing. Codes are yours, but never 0. */
export class Refusal extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/** Reads `5`, or `5 for 1500`: what to add, and for how many milliseconds if not for good. */
export function command(bytes) {
  const text = decoder.decode(bytes);
  const at = text.indexOf(" for ");
  if (at < 0) return { step: number(text) };
  const step = number(text.slice(0, at));
  const time = text.slice(at + 5);
  const holdMs = /^[0-9]{1,19}$/.test(time) ? BigInt(time) : 0n;
  if (holdMs < 1n || holdMs > HOLD_MS_MAX) {
    throw new Refusal(3, "the time is a whole number of milliseconds from 1 to 86400000");
  }
  return { step, holdMs };
}

/** Reads a whole number: a sign or none, and 1 to 19 digits. */
export function number(text) {
  const parts = /^([+-]?)([0-9]{1,19})$/.exec(text);
  const value = parts && (parts[1] === "-" ? -BigInt(parts[2]) : BigInt(parts[2]));
  if (value === null || BigInt.asIntN(64, value) !== value) {
    throw new Refusal(1, "a whole number between -2^63 and 2^63-1 is expected, like 5 or -5");
  }
  return value;
}

/** The sum, if it is one. */
export function inRange(sum) {
  if (BigInt.asIntN(64, sum) !== sum) throw new Refusal(2, "the sum would leave the range of -2^63 to 2^63-1");
  return sum;
}

/** Grants a lease. What is to be taken back when it ends is in the name of the key attached to it. */
export function hold(step, ms) {
  try {
    const lease = grant(ms);
    attach(lease, encoder.encode(`${lease} ${step}`));
  } catch {
    throw new Refusal(4, "there are as many numbers held as the machine may hold");
  }
}

/** The sum without what was held by the lease that ended. */
export function without(sum, ended) {
  for (const key of ended.keys) sum = inRange(sum - number(decoder.decode(key).split(" ")[1]));
  return sum;
}

/** The number in decimal. */
export function told(sum) {
  return encoder.encode(String(sum));
}

/** Tells watchers and the client. */
export function tell(sum) {
  const text = told(sum);
  emit("put", encoder.encode("sum"), text);
  return text;
}

/** Reads the configuration: the number to start from, or nothing. */
export function start(bytes) {
  return bytes.length > 0 ? number(decoder.decode(bytes)) : 0n;
}
