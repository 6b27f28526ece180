#!/bin/sh
# Builds the Rust guests: core modules by cargo, components by the tool in componentize/.
#
#   guests/build.sh           builds all, and writes NAME/NAME.component.wasm beside each source
#   guests/build.sh kv        builds one
#   guests/build.sh bad       builds those in bad/, which `module check` is to catch
#   guests/build.sh DIRECTORY builds a crate of your own into its target/, ready to be uploaded
#   guests/build.sh --prepare only sees to the compiler
#   guests/build.sh --check   rebuilds elsewhere and compares with what is committed, byte by byte; that can only be
#                             asked of the compiler named in reference-toolchain.txt, so without it the check is skipped
#
# Takes the first toolchain that can: rustc in PATH with the wasm32-unknown-unknown target (added by rustup if it is not
# there yet), else Debian's rustc-web (installed if this is root and apt has it). Two of the bad guests ask WASI for a
# clock and for chance, and take the target wasm32-wasip2, which only rustup has; without it they are left out.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
called_in=$(pwd)
cd "$here"
target=wasm32-unknown-unknown
wasi=wasm32-wasip2
reference=$(cat reference-toolchain.txt)
guests="kv counter notes limiter queue orders"
bad="globals hash-order stack"
bad_of_wasi="clock randomness"
check=no
prepare=no
own=

say() { printf '%s\n' "$*" >&2; }

for argument in "$@"; do
    case $argument in
        --check) check=yes ;;
        --prepare) prepare=yes ;;
        kv | counter | notes | limiter | queue | orders) guests=$argument bad='' bad_of_wasi='' ;;
        bad) guests='' ;;
        */*)
            own=$(cd "$called_in" && cd "$argument" && pwd) || exit 2
            [ -f "$own/Cargo.toml" ] || { say "$own has no Cargo.toml: name the directory of a crate"; exit 2; }
            ;;
        *) say "usage: guests/build.sh [--check] [GUEST | bad] | --prepare | DIRECTORY (with a slash in it, as ./tally)"; exit 2 ;;
    esac
done

# Whether the compiler $1 brings the standard library for the target $2.
has_target() { [ -d "$("$1" --print sysroot 2>/dev/null)/lib/rustlib/$2/lib" ]; }

# The same for rustc in PATH, which rustup may be able to give it.
gets_target() {
    has_target rustc "$1" && return
    command -v rustup >/dev/null && rustup target add "$1" >/dev/null 2>&1 && has_target rustc "$1"
}

# Debian's compiler has no compiled library for the target, but its source: cargo builds it along, which needs the
# switch for unstable features. Debian's lld, or the one of a rustup toolchain, links.
use_debian() {
    [ -x /usr/bin/cargo ] && [ -d "$(/usr/bin/rustc --print sysroot)/lib/rustlib/src/rust/library" ] || return 1
    for linker in $(ls /usr/bin/wasm-ld /usr/bin/wasm-ld-* /usr/bin/rust-lld \
        "$(rustc --print sysroot 2>/dev/null)"/lib/rustlib/*/bin/rust-lld 2>/dev/null); do
        RUSTC=/usr/bin/rustc
        RUSTC_BOOTSTRAP=1
        CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=$linker
        export RUSTC RUSTC_BOOTSTRAP CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER
        cargo=/usr/bin/cargo
        build_std=-Zbuild-std=std,panic_abort
        return 0
    done
    return 1
}

find_toolchain() {
    cargo=cargo
    build_std=
    if command -v rustc >/dev/null && command -v cargo >/dev/null; then
        gets_target "$target" && return
    fi
    use_debian && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing Debian's compiler for WebAssembly"
        apt-get update -qq >/dev/null 2>&1 || true
        apt-get install -y -qq --no-install-recommends rustc-web cargo-web rust-web-src lld >/dev/null 2>&1 || true
        use_debian && return
    fi
    say "no compiler for WebAssembly: rustup target add $target, or apt-get install rustc-web cargo-web rust-web-src lld"
    exit 1
}

# Compiles each of the crates whose names are $1 and one of $2; cargo gets the other arguments. One after the other: what
# one asks of a crate that others use, too, must not change the bytes of theirs.
compile() {
    prefix=$1 names=$2
    shift 2
    for guest in $names; do
        "$cargo" build --locked --release "$@" -p "$prefix$guest"
    done
}

# Compiles the guests and turns them into components in the directory $1. Paths of this computer are taken out of them.
build() {
    separator=$(printf '\037')
    registry=${CARGO_HOME:-$HOME/.cargo}/registry/src
    sysroot=$("${RUSTC:-rustc}" --print sysroot)
    CARGO_ENCODED_RUSTFLAGS="--remap-path-prefix=$here=/guests"
    for source in "$registry"/*; do
        CARGO_ENCODED_RUSTFLAGS="$CARGO_ENCODED_RUSTFLAGS$separator--remap-path-prefix=$source=/crates"
    done
    CARGO_ENCODED_RUSTFLAGS="$CARGO_ENCODED_RUSTFLAGS$separator--remap-path-prefix=$sysroot/lib/rustlib/src/rust=/rust"
    export CARGO_ENCODED_RUSTFLAGS
    # Unquoted on purpose: words, or none.
    # shellcheck disable=SC2086
    compile statehouse- "$guests" --target "$target" $build_std
    # shellcheck disable=SC2086
    compile statehouse-bad- "$bad" --target "$target" $build_std
    compile statehouse-bad- "$bad_of_wasi" --target "$wasi"
    unset CARGO_ENCODED_RUSTFLAGS
    for guest in $guests; do
        to_component "$guest" "$1/$guest.component.wasm"
    done
    for guest in $bad; do
        to_component "bad_$(echo "$guest" | tr - _)" "$1/$guest.component.wasm"
    done
    for guest in $bad_of_wasi; do
        # The linker of this target makes components.
        cp "$CARGO_TARGET_DIR/$wasi/release/statehouse_bad_$guest.wasm" "$1/$guest.component.wasm"
    done
}

# Makes a component, in the file $2, of the core module statehouse_$1.
to_component() {
    "$cargo" run --locked --quiet -p componentize -- "$CARGO_TARGET_DIR/$target/release/statehouse_$1.wasm" "$2"
}

# Where the component of the guest $1 is committed.
place() {
    case " $guests " in
        *" $1 "*) echo "$1/$1.component.wasm" ;;
        *) echo "bad/$1/$1.component.wasm" ;;
    esac
}

# Compiles the crate in the directory $1. The host turns the core module into a component when it is uploaded.
build_own() {
    # shellcheck disable=SC2086
    (cd "$1" && "$cargo" build --release --target "$target" --target-dir target $build_std)
    for module in "$1/target/$target/release"/*.wasm; do
        say "$module: $(wc -c <"$module") bytes. To run it: statehouse machine create NAME --module $module"
    done
}

if [ "$prepare" = yes ]; then
    find_toolchain
    exit 0
fi
if [ -n "$own" ]; then
    find_toolchain
    build_own "$own"
    exit 0
fi

CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$here/target}
export CARGO_TARGET_DIR
# Before anything is compiled: so that the directory of sources, which is taken out of the guests, is there.
find_toolchain
"$cargo" fetch --locked --quiet
if [ -n "$bad_of_wasi" ] && { [ -n "$build_std" ] || ! gets_target "$wasi"; }; then
    say "left out: $bad_of_wasi. They take rustup target add $wasi"
    bad_of_wasi=
fi

if [ "$check" = yes ]; then
    version=$("${RUSTC:-rustc}" --version)
    if [ "$version" != "$reference" ]; then
        say "skipped: reference toolchain $reference absent (this is $version)"
        exit 0
    fi
    fresh=$(mktemp -d)
    trap 'rm -rf "$fresh"' EXIT
    build "$fresh"
    for guest in $guests $bad $bad_of_wasi; do
        if ! cmp "$fresh/$guest.component.wasm" "$(place "$guest")"; then
            say "$(place "$guest") is not what its source gives: run guests/build.sh and commit it"
            exit 1
        fi
    done
    say "the committed components are what their sources give"
else
    fresh=$(mktemp -d)
    trap 'rm -rf "$fresh"' EXIT
    build "$fresh"
    for guest in $guests $bad $bad_of_wasi; do
        mv "$fresh/$guest.component.wasm" "$(place "$guest")"
        say "$(place "$guest"): $(wc -c <"$(place "$guest")") bytes"
    done
fi
