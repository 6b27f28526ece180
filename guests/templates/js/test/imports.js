// Has Node take test/host.js for the interfaces that a component imports: node --import ./test/imports.js

import { register } from "node:module";

const host = new URL("./host.js", import.meta.url).href;
const hooks = `export function resolve(name, context, next) {
  return name.startsWith("statehouse:machine/") ? { url: ${JSON.stringify(host)}, shortCircuit: true } : next(name, context);
}`;
register(`data:text/javascript,${encodeURIComponent(hooks)}`);
