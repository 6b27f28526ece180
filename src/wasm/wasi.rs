//! The small deterministic part of WASI, for languages whose runtime asks for it: clocks are the log's clock,
//! random bytes come from a stream seeded by machine, index and offset, the environment is empty, and all
//! else traps.

use wasmtime::StoreContextMut;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, ComponentType, Linker, LinkerInstance, Lower};

use super::host::charge;
use super::instance::Data;

/// The packages of WASI whose interfaces may be imported, and in them, whatever traps when it is called.
const ALLOWED: [&str; 12] = [
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/stderr",
    "wasi:cli/terminal-",
    "wasi:clocks/",
    "wasi:filesystem/",
    "wasi:io/",
    "wasi:random/",
    "wasi:cli/run",
    "wasi:cli/types",
];

/// Whether a component may import this interface of WASI, in any 0.2 version.
pub fn is_allowed(name: &str) -> bool {
    let (interface, version) = name.split_once('@').unwrap_or((name, ""));
    version.starts_with("0.2.") && ALLOWED.iter().any(|allowed| interface.starts_with(allowed))
}

type Caller<'a> = StoreContextMut<'a, Data>;
type Result<T> = wasmtime::Result<T>;

/// Fuel for each call.
const CALL_FUEL: u64 = 500;

/// Bytes of one request for random bytes, at most.
const RANDOM_BYTES_MAX: u64 = 1 << 20;

/// What `wasi:clocks/wall-clock` calls a datetime.
#[derive(ComponentType, Lower, Clone, Copy)]
#[component(record)]
struct Datetime {
    seconds: u64,
    nanoseconds: u32,
}

/// Adds what of WASI the component imports: what is answered, and traps for the rest.
pub fn link(linker: &mut Linker<Data>, component: &Component) -> Result<()> {
    let engine = component.engine().clone();
    let names: Vec<String> = component
        .component_type()
        .imports(&engine)
        .filter(|(name, item)| is_allowed(name) && matches!(item.ty, ComponentItem::ComponentInstance(_)))
        .map(|(name, _)| name.to_owned())
        .collect();
    for name in names {
        let interface = name.split('@').next().unwrap_or(&name);
        let mut instance = linker.instance(&name)?;
        match interface {
            "wasi:clocks/wall-clock" => wall_clock(&mut instance)?,
            "wasi:clocks/monotonic-clock" => monotonic_clock(&mut instance)?,
            "wasi:random/random" => random(&mut instance, "get-random-bytes", "get-random-u64")?,
            "wasi:random/insecure" => {
                random(&mut instance, "get-insecure-random-bytes", "get-insecure-random-u64")?;
            }
            "wasi:random/insecure-seed" => insecure_seed(&mut instance)?,
            "wasi:cli/environment" => environment(&mut instance)?,
            _ => {}
        }
    }
    linker.define_unknown_imports_as_traps(component)
}

fn wall_clock(linker: &mut LinkerInstance<Data>) -> Result<()> {
    linker.func_wrap("now", |mut cx: Caller, (): ()| {
        charge(&mut cx, CALL_FUEL, 0)?;
        let time_ms = cx.data().world.time_ms;
        let nanoseconds = (time_ms % 1_000) as u32 * 1_000_000;
        Ok((Datetime { seconds: time_ms / 1_000, nanoseconds },))
    })?;
    linker.func_wrap("resolution", |_: Caller, (): ()| Ok((Datetime { seconds: 0, nanoseconds: 1_000_000 },)))
}

fn monotonic_clock(linker: &mut LinkerInstance<Data>) -> Result<()> {
    linker.func_wrap("now", |mut cx: Caller, (): ()| {
        charge(&mut cx, CALL_FUEL, 0)?;
        Ok((cx.data().world.time_ms.saturating_mul(1_000_000),))
    })?;
    linker.func_wrap("resolution", |_: Caller, (): ()| Ok((1_000_000_u64,)))
}

fn random(linker: &mut LinkerInstance<Data>, bytes: &str, number: &str) -> Result<()> {
    linker.func_wrap(bytes, |mut cx: Caller, (count,): (u64,)| {
        if count > RANDOM_BYTES_MAX {
            let what = format!("{count} random bytes at a time, at most {RANDOM_BYTES_MAX}");
            return Err(wasmtime::Error::msg(what));
        }
        charge(&mut cx, CALL_FUEL, count as usize)?;
        Ok((next_random(&mut cx, count as usize),))
    })?;
    linker.func_wrap(number, |mut cx: Caller, (): ()| {
        charge(&mut cx, CALL_FUEL, 8)?;
        Ok((next_random_u64(&mut cx),))
    })
}

fn insecure_seed(linker: &mut LinkerInstance<Data>) -> Result<()> {
    linker.func_wrap("insecure-seed", |mut cx: Caller, (): ()| {
        charge(&mut cx, CALL_FUEL, 16)?;
        let pair = (next_random_u64(&mut cx), next_random_u64(&mut cx));
        Ok((pair,))
    })
}

fn environment(linker: &mut LinkerInstance<Data>) -> Result<()> {
    linker.func_wrap("get-environment", |_: Caller, (): ()| Ok((Vec::<(String, String)>::new(),)))?;
    linker.func_wrap("get-arguments", |_: Caller, (): ()| Ok((Vec::<String>::new(),)))?;
    linker.func_wrap("initial-cwd", |_: Caller, (): ()| Ok((None::<String>,)))
}

/// The next bytes of the call's stream: blake3 in its mode of unlimited output, keyed by the call's seed.
fn next_random(cx: &mut Caller, count: usize) -> Vec<u8> {
    let world = &mut cx.data_mut().world;
    let mut reader = blake3::Hasher::new_keyed(&world.seed).finalize_xof();
    reader.set_position(world.random_position);
    let mut bytes = vec![0; count];
    reader.fill(&mut bytes);
    world.random_position += count as u64;
    bytes
}

fn next_random_u64(cx: &mut Caller) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&next_random(cx, 8));
    u64::from_le_bytes(bytes)
}
