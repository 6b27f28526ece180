#!/usr/bin/env bash
# The demo: starts a node, uploads a machine, uses it and the kv machine, kills the node, starts it again, and shows
# that nothing was lost. Prints every command before it runs it, and fails if an answer is not the one expected.
#
#   tests/demo.sh [STATEHOUSE]        the binary; target/release/statehouse by default
set -euo pipefail
cd "$(dirname "$0")/.."

binary=$(realpath "${1:-target/release/statehouse}")
place=$(mktemp -d)
node=

statehouse() { "$binary" "$@"; }

end() {
    local code=$?
    if [ -n "$node" ]; then kill -KILL "$node" 2>/dev/null || true; fi
    if [ $code != 0 ] && [ -f "$place/log" ]; then
        printf '\nThe demo failed. The end of the node'\''s log:\n' >&2
        tail -n 30 "$place/log" >&2
    fi
    rm -rf "$place"
}
trap end EXIT

title() { printf '\n# %s\n' "$*"; }

# Prints a command and runs it; its output is also in $answer.
run() {
    local word line='$'
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_./:=-]+$ ]] || word="'$word'"
        line+=" $word"
    done
    printf '%s\n' "$line"
    answer=$("$@")
    printf '%s\n' "$answer"
}

expect() {
    if [ "$answer" != "$1" ]; then
        printf 'expected: %s\n' "$1" >&2
        exit 1
    fi
}

# Starts the node on free ports and waits until it says where it listens.
start() {
    echo '$ statehouse serve --data-dir data --name demo --client 127.0.0.1:0 --peer 127.0.0.1:0 --bootstrap &'
    : >"$place/ready"
    "$binary" serve --data-dir "$place/data" --name demo --client 127.0.0.1:0 --peer 127.0.0.1:0 --bootstrap --json \
        >"$place/ready" 2>>"$place/log" &
    node=$!
    local deadline=$((SECONDS + 60)) client
    until client=$(grep -o '"client":"[^"]*"' "$place/ready" | cut -d '"' -f 4) && [ -n "$client" ]; do
        if ! kill -0 "$node" 2>/dev/null || [ $SECONDS -gt $deadline ]; then
            echo 'the node did not start' >&2
            exit 1
        fi
        sleep 0.05
    done
    export STATEHOUSE_ENDPOINTS=$client
    echo "the node is ready on $client"
}

title 'One node, with nothing in it'
start

title 'Upload a machine: the notes of the gallery, 47 lines of Rust'
run statehouse module push guests/notes/notes.component.wasm
digest=$answer
run statehouse machine create notes --module "$digest"
run statehouse apply notes 'shopping=two litres of milk'
run statehouse query notes shopping
expect 'two litres of milk'

title 'The machine that is built in: a key-value store with the data model of etcd'
run statehouse machine create kv --module builtin:kv
run statehouse kv put colour green
run statehouse kv put colour blue
run statehouse kv get colour
expect blue

title 'A hundred notes, and the moment the last is acknowledged, SIGKILL'
echo '$ for i in $(seq 100); do statehouse apply notes "note-$i=kept"; done'
for i in $(seq 100); do statehouse apply notes "note-$i=kept" >/dev/null; done
echo "\$ kill -KILL $node"
kill -KILL "$node"
wait "$node" 2>/dev/null || true

title 'Start it again: everything is there'
start
run statehouse query notes shopping
expect 'two litres of milk'
run statehouse kv get colour
expect blue
echo '$ for i in $(seq 100); do statehouse query notes "note-$i"; done | sort | uniq -c'
answer=$(for i in $(seq 100); do statehouse query notes "note-$i"; echo; done | grep . | sort | uniq -c)
printf '%s\n' "$answer"
answer=$(echo $answer)
expect '100 kept'
run statehouse status

title 'Stop it cleanly'
echo "\$ kill -TERM $node"
kill -TERM "$node"
wait "$node"
node=
echo 'stopped'
