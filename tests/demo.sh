#!/usr/bin/env bash
# The demo: three nodes as processes, a machine uploaded at one and used at the others, the leader killed with SIGKILL
# while the rest goes on, and started again to find all three equal. Prints every command before it runs it, and fails
# if an answer is not the one expected.
#
#   tests/demo.sh [STATEHOUSE]        the binary; target/release/statehouse by default
set -euo pipefail
cd "$(dirname "$0")/.."

binary=$(realpath "${1:-target/release/statehouse}")
place=$(mktemp -d)
declare -A process=() client=() peer=()

statehouse() { "$binary" "$@"; }

end() {
    local code=$? name
    for name in "${!process[@]}"; do kill -KILL "${process[$name]}" 2>/dev/null || true; done
    if [ $code != 0 ]; then
        for name in "$place"/*.log; do
            [ -f "$name" ] || continue
            printf '\nThe demo failed. The end of %s:\n' "$(basename "$name")" >&2
            tail -n 20 "$name" >&2
        done
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

# Waits until a command succeeds; says what was waited for if it does not.
until_true() {
    local what=$1 deadline=$((SECONDS + 60))
    shift
    until "$@"; do
        if [ $SECONDS -gt $deadline ]; then
            printf 'in vain: %s\n' "$what" >&2
            exit 1
        fi
        sleep 0.1
    done
}

# Starts a node: on free ports the first time, where it was before after that; waits until it says that it is ready.
start() {
    local name=$1 how=$2 ready
    local arguments=(--data-dir "$name" --name "$name" --client "${client[$name]:-127.0.0.1:0}"
        --peer "${peer[$name]:-127.0.0.1:0}")
    if [ -n "$how" ]; then read -ra how <<<"$how" && arguments+=("${how[@]}"); fi
    echo "\$ statehouse serve ${arguments[*]} &"
    : >"$place/$name.ready"
    (cd "$place" && exec "$binary" serve "${arguments[@]}" --json >"$name.ready" 2>>"$name.log") &
    process[$name]=$!
    until_true "node $name is ready" answers_or_ended "$name"
    ready=$(<"$place/$name.ready")
    client[$name]=$(grep -o '"client":"[^"]*"' <<<"$ready" | cut -d '"' -f 4)
    peer[$name]=$(grep -o '"peer":"[^"]*"' <<<"$ready" | cut -d '"' -f 4)
    echo "node $name is ready: clients at ${client[$name]}, other nodes at ${peer[$name]}"
}

answers_or_ended() {
    grep -q '"peer":"' "$place/$1.ready" && return
    if ! kill -0 "${process[$1]}" 2>/dev/null; then
        echo "node $1 did not start" >&2
        exit 1
    fi
    return 1
}

# From now on commands go to the nodes of these names, the first that answers.
use() {
    local name addresses=()
    for name in "$@"; do addresses+=("${client[$name]}"); done
    STATEHOUSE_ENDPOINTS=$(IFS=, && echo "${addresses[*]}")
    export STATEHOUSE_ENDPOINTS
    echo "\$ export STATEHOUSE_ENDPOINTS=$STATEHOUSE_ENDPOINTS        # node $*"
}

# What a node says of its replica of a machine: a field of `machine show --json`.
of_replica() {
    STATEHOUSE_ENDPOINTS=${client[$1]} statehouse --json machine show "$2" |
        tr '{},' '\n' | grep "^\"$3\":" | cut -d ':' -f 2- | tr -d '"'
}

# Whether all three have applied the same and come to the same hash.
equal() {
    local name first='' found
    for name in a b c; do
        found="$(of_replica "$name" "$1" applied_index) $(of_replica "$name" "$1" state_hash)" || return 1
        if [ -n "$first" ] && [ "$found" != "$first" ]; then return 1; fi
        first=$found
    done
}

title 'Three nodes: the first begins a cluster, the others join it'
start a --bootstrap
start b "--join ${client[a]}"
start c "--join ${client[a]}"
use a b c
run statehouse member list
if [ "$(grep -c yes <<<"$answer")" != 3 ]; then echo 'three nodes were expected' >&2; exit 1; fi

title 'Upload a machine at one of them: the notes of the gallery, 47 lines of Rust'
use a
run statehouse module push guests/notes/notes.component.wasm
digest=$answer
run statehouse machine create notes --module "$digest"
run statehouse apply notes 'shopping=two litres of milk'

title 'Use it at the others'
use b
run statehouse query notes shopping
expect 'two litres of milk'
use c
run statehouse apply notes 'shopping=two litres of milk, and bread'
use a
run statehouse query notes shopping
expect 'two litres of milk, and bread'

title 'The machine that is built in: a key-value store with the data model of etcd'
run statehouse machine create kv --module builtin:kv
run statehouse kv put colour green
use b
run statehouse kv put colour blue
use c
run statehouse kv get colour
expect blue

title 'SIGKILL to the node that leads the notes'
leader_id=$(of_replica a notes leader)
leader=
for name in a b c; do
    if [ "$(STATEHOUSE_ENDPOINTS=${client[$name]} statehouse --json status | grep -o "\"node\":\"$leader_id\"")" ]; then
        leader=$name
    fi
done
[ -n "$leader" ] || { echo "no node has the id $leader_id" >&2; exit 1; }
rest=()
for name in a b c; do [ "$name" = "$leader" ] || rest+=("$name"); done
echo "\$ kill -KILL ${process[$leader]}        # node $leader"
kill -KILL "${process[$leader]}"
wait "${process[$leader]}" 2>/dev/null || true
unset "process[$leader]"

title 'The two others elect another and go on: a hundred notes, while every node is asked'
use "${rest[0]}" "$leader" "${rest[1]}"
echo '$ for i in $(seq 100); do statehouse apply notes "note-$i=kept"; done'
for i in $(seq 100); do statehouse apply notes "note-$i=kept" >/dev/null; done
run statehouse query notes shopping
expect 'two litres of milk, and bread'
run statehouse member list

title 'Start it again: it catches up'
start "$leader" ''
use "$leader"
echo '$ for i in $(seq 100); do statehouse query notes "note-$i"; done | sort | uniq -c'
answer=$(for i in $(seq 100); do statehouse query notes "note-$i"; echo; done | grep . | sort | uniq -c)
printf '%s\n' "$answer"
answer=$(echo $answer)
expect '100 kept'
run statehouse kv get colour
expect blue

title 'All three have applied the same and have the same state: their rolling hashes agree'
until_true 'the replicas of notes are equal' equal notes
for name in a b c; do
    use "$name"
    run statehouse machine show notes
done
use a b c
run statehouse member list

title 'Stop them cleanly'
for name in a b c; do
    echo "\$ kill -TERM ${process[$name]}        # node $name"
    kill -TERM "${process[$name]}"
done
for name in a b c; do
    wait "${process[$name]}"
    unset "process[$name]"
done
echo 'stopped'
