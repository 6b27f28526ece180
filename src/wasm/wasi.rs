//! The small part of WASI that language runtimes ask for, made deterministic.
//!
//! Clocks are the log's clock and stand still during a call. Random bytes are a stream made from the
//! machine's seed and the input's place in the log. Standard output and error are log lines. There are no
//! arguments, no environment, no files, and nothing to wait for: every other function of an allowed interface
//! traps when it is called. So does all of the network, where a component may ask for it at all.
//!
//! While an instance is made, time is zero and randomness a constant, because it is made before its batch is
//! known.
//!
//! Never: a clock, entropy, file or socket of this computer.

use wasmtime::component::{ComponentType, Linker, LinkerInstance, Lower, Resource, ResourceType, WasmList};
use wasmtime::{Result, bail};

use super::data::{Caller, Data, charge_call};
use crate::machine::frame::limits::LOG_LINE_BYTES_MAX;
use crate::machine::frame::{Frame, LogLevel};

/// The interfaces of WASI 0.2 that a component may import. Those not listed are refused at upload.
pub const ALLOWED: &[&str] = &[
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/wall-clock",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
];

/// The network, which a component may import if it could not help it, and of which every call traps.
const SOCKETS: &str = "wasi:sockets/";

/// Raised with every change of what a guest is told or charged: part of the engine's fingerprint.
pub const EDITION: u32 = 2;

/// Random bytes of one call, at most.
const RANDOM_BYTES_MAX: u64 = 1 << 20;
/// What a guest is told it may write at once.
const STREAM_BYTES_MAX: u64 = 64 << 10;

/// Whether a component may import `name`, such as `wasi:io/streams@0.2.3`.
pub fn is_allowed(name: &str) -> bool {
    interface_of(name).is_some_and(|interface| ALLOWED.contains(&interface))
}

/// Whether `name` is the network, such as `wasi:sockets/tcp@0.2.3`.
pub fn is_network(name: &str) -> bool {
    interface_of(name).is_some_and(|interface| interface.starts_with(SOCKETS))
}

/// The interface of `name` if its version is one of WASI 0.2's.
fn interface_of(name: &str) -> Option<&str> {
    let (interface, version) = name.split_once('@')?;
    version.starts_with("0.2.").then_some(interface)
}

/// What makes the random bytes of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// The instance is being made.
    Instantiation,
    /// An input, by its index and offset.
    Input(u64, u32),
    /// A query of the state at an index.
    Query(u64),
    /// A snapshot is saved or restored.
    Snapshot,
}

/// The state behind the functions, for one instance.
pub struct Wasi {
    seed: [u8; 32],
    time_ms: u64,
    occasion: Occasion,
    /// Made when the call first asks.
    random: Option<blake3::OutputReader>,
    /// Lines begun on standard output and error.
    lines: [Vec<u8>; 2],
}

impl Wasi {
    /// For an instance being made, of the machine with this seed.
    pub fn new(seed: [u8; 32]) -> Wasi {
        Wasi {
            seed,
            time_ms: 0,
            occasion: Occasion::Instantiation,
            random: None,
            lines: [Vec::new(), Vec::new()],
        }
    }

    /// Begins a call.
    pub fn begin(&mut self, time_ms: u64, occasion: Occasion) {
        self.time_ms = time_ms;
        self.occasion = occasion;
        self.random = None;
    }

    /// Ends a call: what was printed without a line's end becomes a line.
    pub fn finish(&mut self, frame: &mut Frame) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.end_line(Some(frame), stream);
        }
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        let (seed, occasion) = (&self.seed, self.occasion);
        self.random.get_or_insert_with(|| random_stream(seed, occasion)).fill(bytes);
    }

    fn random_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn print(&mut self, mut frame: Option<&mut Frame>, stream: Stream, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' || self.lines[stream as usize].len() == LOG_LINE_BYTES_MAX / 4 {
                self.end_line(frame.as_deref_mut(), stream);
            }
            if byte != b'\n' {
                self.lines[stream as usize].push(byte);
            }
        }
    }

    /// A line goes to the frame's log if there is room; lines past the contract's limit, and those printed
    /// while the instance is made, are dropped, because a runtime that prints does not ask whether it may.
    fn end_line(&mut self, frame: Option<&mut Frame>, stream: Stream) {
        let line = std::mem::take(&mut self.lines[stream as usize]);
        if let Some(frame) = frame.filter(|_| !line.is_empty()) {
            let level = if stream == Stream::Stderr { LogLevel::Warn } else { LogLevel::Info };
            let _ = frame.log(level, String::from_utf8_lossy(&line).into_owned());
        }
    }
}

fn random_stream(seed: &[u8; 32], occasion: Occasion) -> blake3::OutputReader {
    let (key, kind, index, offset) = match occasion {
        Occasion::Instantiation => (&[0; 32], 0u8, 0, 0),
        Occasion::Input(index, offset) => (seed, 1, index, offset),
        Occasion::Query(index) => (seed, 2, index, 0),
        Occasion::Snapshot => (seed, 3, 0, 0),
    };
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&[kind]).update(&index.to_le_bytes()).update(&offset.to_le_bytes());
    hasher.finalize_xof()
}

/// Standard output or error; also the number behind a guest's handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Stdout = 0,
    Stderr = 1,
}

/// `wasi:io/streams.output-stream`: its number is a [`Stream`].
struct OutputStream;
/// `wasi:io/streams.input-stream`: always at its end.
struct InputStream;
/// `wasi:io/error.error`: never made.
struct IoError;
/// `wasi:io/poll.pollable`: always ready.
struct Pollable;
/// `wasi:filesystem/types.descriptor`: never made.
struct Descriptor;
/// `wasi:cli/terminal-*`: never made.
struct Terminal;

#[derive(ComponentType, Lower)]
#[component(variant)]
enum StreamError {
    /// Never made: nothing that is written can fail.
    #[component(name = "last-operation-failed")]
    #[expect(dead_code, reason = "the type must have the case that the interface names")]
    LastOperationFailed(Resource<IoError>),
    #[component(name = "closed")]
    Closed,
}

#[derive(ComponentType, Lower)]
#[component(record)]
struct Datetime {
    #[component(name = "seconds")]
    seconds: u64,
    #[component(name = "nanoseconds")]
    nanoseconds: u32,
}

/// Links `interface` (a full name with its version) as far as it does anything.
pub fn link(linker: &mut Linker<Data>, name: &str) -> Result<()> {
    let Some(interface) = interface_of(name).filter(|_| is_allowed(name) || is_network(name)) else {
        bail!("the import {name} is not allowed")
    };
    let mut instance = linker.instance(name)?;
    link_used_resources(&mut instance, interface)?;
    match interface {
        "wasi:cli/environment" => link_environment(&mut instance),
        "wasi:cli/stdin" => {
            instance.func_wrap("get-stdin", |_: Caller, (): ()| Ok((Resource::<InputStream>::new_own(0),)))
        }
        "wasi:cli/stdout" => link_stream(&mut instance, "get-stdout", Stream::Stdout),
        "wasi:cli/stderr" => link_stream(&mut instance, "get-stderr", Stream::Stderr),
        "wasi:cli/terminal-input" => resource::<Terminal>(&mut instance, "terminal-input"),
        "wasi:cli/terminal-output" => resource::<Terminal>(&mut instance, "terminal-output"),
        "wasi:cli/terminal-stdin" => link_terminal(&mut instance, "get-terminal-stdin"),
        "wasi:cli/terminal-stdout" => link_terminal(&mut instance, "get-terminal-stdout"),
        "wasi:cli/terminal-stderr" => link_terminal(&mut instance, "get-terminal-stderr"),
        "wasi:clocks/monotonic-clock" => link_monotonic_clock(&mut instance),
        "wasi:clocks/wall-clock" => link_wall_clock(&mut instance),
        "wasi:filesystem/types" => resource::<Descriptor>(&mut instance, "descriptor"),
        "wasi:filesystem/preopens" => instance.func_wrap("get-directories", |_: Caller, (): ()| {
            Ok((Vec::<(Resource<Descriptor>, String)>::new(),))
        }),
        "wasi:io/error" => resource::<IoError>(&mut instance, "error"),
        "wasi:io/poll" => link_poll(&mut instance),
        "wasi:io/streams" => link_streams(&mut instance),
        "wasi:random/random" => link_random(&mut instance, "get-random-bytes", "get-random-u64"),
        "wasi:random/insecure" => {
            link_random(&mut instance, "get-insecure-random-bytes", "get-insecure-random-u64")
        }
        "wasi:random/insecure-seed" => instance.func_wrap("insecure-seed", |mut caller: Caller, (): ()| {
            charge_call(&mut caller, 16)?;
            let wasi = &mut caller.data_mut().wasi;
            Ok(((wasi.random_u64(), wasi.random_u64()),))
        }),
        // Allowed, and all of it traps.
        _ => Ok(()),
    }
}

/// The resources that an interface takes from another one: a component imports them from both, as one type.
fn link_used_resources(instance: &mut LinkerInstance<Data>, interface: &str) -> Result<()> {
    match interface {
        "wasi:cli/stdin" => resource::<InputStream>(instance, "input-stream"),
        "wasi:cli/stdout" | "wasi:cli/stderr" => resource::<OutputStream>(instance, "output-stream"),
        "wasi:cli/terminal-stdin" => resource::<Terminal>(instance, "terminal-input"),
        "wasi:cli/terminal-stdout" | "wasi:cli/terminal-stderr" => {
            resource::<Terminal>(instance, "terminal-output")
        }
        "wasi:clocks/monotonic-clock" => resource::<Pollable>(instance, "pollable"),
        "wasi:filesystem/preopens" => resource::<Descriptor>(instance, "descriptor"),
        "wasi:filesystem/types" => {
            resource::<InputStream>(instance, "input-stream")?;
            resource::<OutputStream>(instance, "output-stream")?;
            resource::<IoError>(instance, "error")
        }
        "wasi:io/streams" => {
            resource::<IoError>(instance, "error")?;
            resource::<Pollable>(instance, "pollable")
        }
        "wasi:sockets/tcp" => {
            resource::<InputStream>(instance, "input-stream")?;
            resource::<OutputStream>(instance, "output-stream")?;
            resource::<Pollable>(instance, "pollable")
        }
        "wasi:sockets/udp" | "wasi:sockets/ip-name-lookup" => resource::<Pollable>(instance, "pollable"),
        _ => Ok(()),
    }
}

fn resource<T: 'static>(instance: &mut LinkerInstance<Data>, name: &str) -> Result<()> {
    instance.resource(name, ResourceType::host::<T>(), |_, _| Ok(()))
}

fn link_environment(instance: &mut LinkerInstance<Data>) -> Result<()> {
    instance.func_wrap("get-environment", |_: Caller, (): ()| Ok((Vec::<(String, String)>::new(),)))?;
    instance.func_wrap("get-arguments", |_: Caller, (): ()| Ok((Vec::<String>::new(),)))?;
    instance.func_wrap("initial-cwd", |_: Caller, (): ()| Ok((None::<String>,)))
}

fn link_terminal(instance: &mut LinkerInstance<Data>, name: &str) -> Result<()> {
    instance.func_wrap(name, |_: Caller, (): ()| Ok((None::<Resource<Terminal>>,)))
}

fn link_stream(instance: &mut LinkerInstance<Data>, name: &str, stream: Stream) -> Result<()> {
    instance.func_wrap(name, move |_: Caller, (): ()| Ok((Resource::<OutputStream>::new_own(stream as u32),)))
}

fn link_monotonic_clock(instance: &mut LinkerInstance<Data>) -> Result<()> {
    instance.func_wrap("now", |mut caller: Caller, (): ()| {
        charge_call(&mut caller, 8)?;
        // While an instance is made it is no time yet. Go's runtime takes 0 for a clock that does not work.
        Ok((caller.data().wasi.time_ms.wrapping_mul(1_000_000).max(1),))
    })?;
    instance.func_wrap("resolution", |_: Caller, (): ()| Ok((1_000_000u64,)))
}

fn link_wall_clock(instance: &mut LinkerInstance<Data>) -> Result<()> {
    instance.func_wrap("now", |mut caller: Caller, (): ()| {
        charge_call(&mut caller, 12)?;
        let time_ms = caller.data().wasi.time_ms;
        // Below 1000 times a million, so it fits.
        let nanoseconds = (time_ms % 1_000) as u32 * 1_000_000;
        Ok((Datetime { seconds: time_ms / 1_000, nanoseconds },))
    })?;
    instance
        .func_wrap("resolution", |_: Caller, (): ()| Ok((Datetime { seconds: 0, nanoseconds: 1_000_000 },)))
}

fn link_random(instance: &mut LinkerInstance<Data>, bytes: &str, number: &str) -> Result<()> {
    instance.func_wrap(bytes, |mut caller: Caller, (len,): (u64,)| {
        if len > RANDOM_BYTES_MAX {
            bail!("{len} random bytes were asked for, at most {RANDOM_BYTES_MAX}");
        }
        charge_call(&mut caller, len as usize)?;
        let mut random = vec![0; len as usize];
        caller.data_mut().wasi.fill(&mut random);
        Ok((random,))
    })?;
    instance.func_wrap(number, |mut caller: Caller, (): ()| {
        charge_call(&mut caller, 8)?;
        Ok((caller.data_mut().wasi.random_u64(),))
    })
}

fn link_poll(instance: &mut LinkerInstance<Data>) -> Result<()> {
    resource::<Pollable>(instance, "pollable")?;
    instance.func_wrap("[method]pollable.ready", |mut caller: Caller, (_,): (Resource<Pollable>,)| {
        charge_call(&mut caller, 0)?;
        Ok((true,))
    })?;
    instance.func_wrap("[method]pollable.block", |mut caller: Caller, (_,): (Resource<Pollable>,)| {
        charge_call(&mut caller, 0)
    })?;
    instance.func_wrap("poll", |mut caller: Caller, (list,): (Vec<Resource<Pollable>>,)| {
        charge_call(&mut caller, list.len() * 4)?;
        let ready: Vec<u32> = (0..).take(list.len()).collect();
        Ok((ready,))
    })
}

type Written = (Result<(), StreamError>,);

fn link_streams(instance: &mut LinkerInstance<Data>) -> Result<()> {
    resource::<InputStream>(instance, "input-stream")?;
    resource::<OutputStream>(instance, "output-stream")?;
    for name in ["[method]output-stream.write", "[method]output-stream.blocking-write-and-flush"] {
        instance.func_wrap(name, |caller: Caller, (to, what): (Resource<OutputStream>, WasmList<u8>)| {
            write(caller, &to, &what)
        })?;
    }
    for name in ["[method]output-stream.flush", "[method]output-stream.blocking-flush"] {
        instance.func_wrap(name, |mut caller: Caller, (_,): (Resource<OutputStream>,)| {
            charge_call(&mut caller, 0)?;
            Ok::<Written, _>((Ok(()),))
        })?;
    }
    instance.func_wrap(
        "[method]output-stream.check-write",
        |mut caller: Caller, (_,): (Resource<OutputStream>,)| {
            charge_call(&mut caller, 0)?;
            Ok((Ok::<u64, StreamError>(STREAM_BYTES_MAX),))
        },
    )?;
    instance.func_wrap(
        "[method]output-stream.subscribe",
        |mut caller: Caller, (_,): (Resource<OutputStream>,)| {
            charge_call(&mut caller, 0)?;
            Ok((Resource::<Pollable>::new_own(0),))
        },
    )?;
    for name in ["[method]input-stream.read", "[method]input-stream.blocking-read"] {
        instance.func_wrap(name, |mut caller: Caller, (_, _): (Resource<InputStream>, u64)| {
            charge_call(&mut caller, 0)?;
            Ok((Err::<Vec<u8>, _>(StreamError::Closed),))
        })?;
    }
    instance.func_wrap(
        "[method]input-stream.subscribe",
        |mut caller: Caller, (_,): (Resource<InputStream>,)| {
            charge_call(&mut caller, 0)?;
            Ok((Resource::<Pollable>::new_own(0),))
        },
    )
}

fn write(mut caller: Caller, to: &Resource<OutputStream>, what: &WasmList<u8>) -> Result<Written> {
    charge_call(&mut caller, what.len())?;
    let bytes = what.as_le_slice(&caller).to_vec();
    let stream = if to.rep() == Stream::Stderr as u32 { Stream::Stderr } else { Stream::Stdout };
    let Data { frame, wasi, .. } = caller.data_mut();
    wasi.print(frame.as_mut(), stream, &bytes);
    Ok((Ok(()),))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_bytes(seed: u8, occasion: Occasion) -> [u8; 16] {
        let mut wasi = Wasi::new([seed; 32]);
        wasi.begin(5, occasion);
        let mut bytes = [0; 16];
        wasi.fill(&mut bytes);
        bytes
    }

    #[test]
    fn randomness_follows_machine_index_and_offset() {
        let base = some_bytes(1, Occasion::Input(7, 3));
        assert_eq!(base, some_bytes(1, Occasion::Input(7, 3)));
        for other in [
            some_bytes(2, Occasion::Input(7, 3)),
            some_bytes(1, Occasion::Input(8, 3)),
            some_bytes(1, Occasion::Input(7, 4)),
            some_bytes(1, Occasion::Query(7)),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn an_instance_is_made_with_the_same_randomness_everywhere() {
        assert_eq!(some_bytes(1, Occasion::Instantiation), some_bytes(2, Occasion::Instantiation));
    }

    #[test]
    fn sockets_http_and_other_versions_are_not_allowed() {
        assert!(is_allowed("wasi:io/streams@0.2.3"));
        for name in
            ["wasi:sockets/tcp@0.2.0", "wasi:http/types@0.2.0", "wasi:io/streams@0.3.0", "wasi:io/streams"]
        {
            assert!(!is_allowed(name), "{name}");
        }
        assert!(is_network("wasi:sockets/tcp@0.2.0"));
        assert!(!is_network("wasi:sockets/tcp@0.3.0") && !is_network("wasi:http/types@0.2.0"));
    }
}
