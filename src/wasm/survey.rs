//! What can be told of a component by looking at it: which features of WebAssembly it uses, what it will get
//! from the part of WASI that it asks for, and the words in its data.
//!
//! For people and for tests of a component, never for a decision of a node: it compiles nothing, refuses
//! nothing, and takes for granted that the component was inspected.

use std::collections::BTreeSet;

use wasmparser::{Parser, Payload, Validator};

use super::engine;
use super::validate::{STACK_BYTES, shown, without};
use crate::error::Fault;

/// Words that are looked for, at most: a runtime for scripts has hundreds of thousands.
const WORDS_MAX: usize = 4_000;

/// Bytes of a word.
const WORD_BYTES: std::ops::RangeInclusive<usize> = 2..=40;

/// The features that it cannot do without, by name: of those that the contract allows, and of those that it
/// leaves out if it is refused for them.
///
/// # Errors
/// If no thread could be started with room for nested types.
pub fn features(component: &[u8]) -> Result<Vec<String>, Fault> {
    let failed = |why: String| Fault::new(format!("the features of the module were not looked for: {why}"));
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("survey".into()).stack_size(STACK_BYTES);
        let looking =
            thread.spawn_scoped(scope, || features_here(component)).map_err(|e| failed(e.to_string()))?;
        looking.join().map_err(|_| failed("the parser gave up on it".into()))
    })
}

fn features_here(component: &[u8]) -> Vec<String> {
    let valid_with = |features| Validator::new_with_features(features).validate_all(component).is_ok();
    let every = engine::features() | engine::features_off();
    let Some(base) = [engine::features(), every].into_iter().find(|base| valid_with(*base)) else {
        return Vec::new();
    };
    let needed = base.iter_names().filter(|(_, feature)| !valid_with(without(base, *feature)));
    needed.map(|(name, _)| shown(name)).collect()
}

/// What a component gets from an interface of WASI; none for other interfaces.
pub fn given(import: &str) -> Option<&'static str> {
    let interface = import.strip_prefix("wasi:")?.split('@').next().unwrap_or_default();
    Some(match interface.split('/').next().unwrap_or_default() {
        "clocks" => "asks the clock: gets the log's, which stands still during an input",
        "random" => "asks for random bytes: gets a stream made of the machine, the index and the offset",
        "filesystem" => "asks for files: finds no directory",
        "io" => "a part of the others",
        "sockets" => "its libraries know the network: to use it is a trap",
        _ => match interface {
            "cli/environment" => "asks for its environment: finds no variable and no argument",
            "cli/exit" => "ends its process: that is a trap",
            "cli/stdin" => "reads its input: it is at its end",
            "cli/stdout" | "cli/stderr" => "prints: that goes to the node's log",
            _ => "asks for a terminal: there is none",
        },
    })
}

/// Words of the component's data, in the order in which they are found, each once.
///
/// Texts are cut where a byte is neither a letter nor a digit nor one of `_-./`.
pub fn words(component: &[u8]) -> Vec<Vec<u8>> {
    let (mut words, mut known) = (Vec::new(), BTreeSet::new());
    // It was validated: what does not parse here is not there.
    for payload in Parser::new(0).parse_all(component).map_while(Result::ok) {
        let Payload::DataSection(section) = payload else { continue };
        for data in section.into_iter().map_while(Result::ok) {
            for word in data.data.split(|byte| !is_of_word(*byte)) {
                let fits = WORD_BYTES.contains(&word.len()) && word.iter().any(u8::is_ascii_alphabetic);
                if fits && words.len() < WORDS_MAX && known.insert(word) {
                    words.push(word.to_vec());
                }
            }
        }
    }
    words
}

fn is_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_-./".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wasm::testing::{KV, guest_text, stored};

    #[test]
    fn features_in_use_are_named() {
        let plain = stored(&guest_text("", "(call $ok)", "(call $ok)"));
        let simd = "(drop (i8x16.popcnt (v128.const i64x2 1 2))) (call $ok)";
        let simd = stored(&guest_text("", simd, "(call $ok)"));
        let has =
            |component: &[u8], name: &str| features(component).unwrap().iter().any(|feature| feature == name);
        assert!(has(&plain, "component-model") && !has(&plain, "simd"), "{:?}", features(&plain));
        assert!(has(&simd, "simd"), "{:?}", features(&simd));
    }

    #[test]
    fn words_are_those_of_the_data() {
        let items = r#"(data (i32.const 512) "put key=value\00\ff12\00put \01x")"#;
        let words = words(&stored(&guest_text(items, "(call $ok)", "(call $ok)")));
        assert_eq!(words, [&b"put"[..], b"key", b"value"]);
        assert!(super::words(KV).len() > 20);
    }

    #[test]
    fn every_allowed_interface_of_wasi_is_explained() {
        for interface in crate::wasm::wasi::ALLOWED {
            assert!(given(&format!("{interface}@0.2.6")).is_some(), "{interface}");
        }
        assert!(given("wasi:sockets/tcp@0.2.6").unwrap().contains("network"));
        assert_eq!(given("statehouse:machine/store@0.1.0"), None);
        assert!(given("wasi:clocks/wall-clock@0.2.6").unwrap().contains("the log's"));
    }
}
