//! Why a module is refused, in words: what is wrong, the value and the limit where there is one, what to do.
//!
//! Promises: a text of bounded length, whatever is in the module.

use std::borrow::Cow;

/// Reasons that one message has, and names of one reason. A status of gRPC has room for some kilobytes.
const REASONS_MAX: usize = 6;

/// Bytes of a name that are shown. Those of the contract have 40.
const NAME_BYTES_MAX: usize = 120;

/// Why a module is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejected {
    /// Over the size limit.
    #[error(
        "the module has {bytes} bytes, at most {max} are allowed: strip debug information, or raise \
         module_bytes_max"
    )]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// Not WebAssembly.
    #[error(
        "this is not a WebAssembly component: it begins with {0}, a component with the bytes \
         0061736d0d000100; give the file that the build ends with, often NAME.component.wasm"
    )]
    NotWasm(String),
    /// The text format.
    #[error("this is WebAssembly's text format, which is not taken: make it binary with `wasm-tools parse`")]
    Text,
    /// A core module that does not say which world it is of.
    #[error(
        "this is a core module without component metadata: build it with wit-bindgen for one of the worlds \
         of statehouse:machine, or run `wasm-tools component embed` and `wasm-tools component new`"
    )]
    CoreModule,
    /// A core module with metadata that does not fit it.
    #[error(
        "this core module cannot be turned into a component: {0}; build it with the version of wit-bindgen \
         that its bindings were made with, or give the output of `wasm-tools component new`"
    )]
    NotConvertible(String),
    /// Over one of the [`Bounds`](super::Bounds).
    #[error("the module has {value} {what}, at most {max} are allowed: {advice}")]
    OverBound {
        /// What was counted.
        what: &'static str,
        /// How many there are; counting stopped here.
        value: u64,
        /// The limit.
        max: u64,
        /// What to do.
        advice: &'static str,
    },
    /// Not valid, whatever features it were given.
    #[error("the module is not valid: {0}; is it damaged, or made by a tool that is newer than this node?")]
    Invalid(String),
    /// In need of a feature that the contract leaves out.
    #[error("the feature {name} of WebAssembly is not given to machines ({found}): {advice}")]
    Feature {
        /// Its name.
        name: String,
        /// Where the module uses it first.
        found: String,
        /// What to do.
        advice: &'static str,
    },
    /// An import that no machine may have.
    #[error("the import {} is not allowed: {why}", short(name))]
    Import {
        /// Its name.
        name: String,
        /// Why not, and what to do.
        why: String,
    },
    /// An import or export whose type is not the contract's.
    #[error(
        "{} does not have the type that statehouse:machine@0.1.0 gives it: {detail}; build the guest with \
         the machine.wit of this version, which `statehouse module new` writes",
        short(name)
    )]
    Type {
        /// Its name.
        name: String,
        /// Which part differs.
        detail: String,
    },
    /// An export that the world demands.
    #[error("the export {name} is missing, which the world {world} demands{}", missing(instead.as_deref()))]
    MissingExport {
        /// Its name.
        name: String,
        /// The world's name.
        world: &'static str,
        /// An export of another version of it.
        instead: Option<String>,
    },
    /// More than one reason, never one of this kind.
    #[error("the module is refused: {}", reasons(.0))]
    Several(Vec<Rejected>),
    /// This computer could not inspect it: try again.
    #[error("the module was not inspected: {0}; try again")]
    NotInspected(String),
    /// The parser failed on it: damaged or hostile.
    #[error(
        "the module cannot be read: {0}; is it damaged or cut short? Compare its sha256 with the original's"
    )]
    Unreadable(String),
}

impl Rejected {
    /// All reasons as one.
    pub fn all(mut rejected: Vec<Rejected>) -> Option<Rejected> {
        match rejected.len() {
            0 | 1 => rejected.pop(),
            _ => Some(Rejected::Several(rejected)),
        }
    }

    /// Each reason by itself.
    pub fn each(&self) -> &[Rejected] {
        match self {
            Rejected::Several(all) => all,
            one => std::slice::from_ref(one),
        }
    }

    /// What is refused, if it has a name.
    pub fn name(&self) -> Option<&str> {
        match self {
            Rejected::Feature { name, .. }
            | Rejected::Import { name, .. }
            | Rejected::Type { name, .. }
            | Rejected::MissingExport { name, .. } => Some(name),
            _ => None,
        }
    }
}

fn missing(instead: Option<&str>) -> String {
    match instead {
        Some(export) => format!(
            "; it has {}, which is another version: build it with the machine.wit of this one, which \
             `statehouse module new` writes",
            short(export)
        ),
        None => {
            ": build the guest for one of the worlds of statehouse:machine, `stored` or `resident`".into()
        }
    }
}

/// A name as it is shown.
fn short(name: &str) -> Cow<'_, str> {
    match name.len() <= NAME_BYTES_MAX {
        true => name.into(),
        false => {
            let shown = &name[..name.floor_char_boundary(NAME_BYTES_MAX)];
            format!("{shown}... ({} bytes)", name.len()).into()
        }
    }
}

/// In one line, imports that are refused for one reason together.
fn reasons(all: &[Rejected]) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut told: Vec<&str> = Vec::new();
    for rejected in all {
        let Rejected::Import { why, .. } = rejected else {
            texts.push(rejected.to_string());
            continue;
        };
        if told.contains(&why.as_str()) {
            continue;
        }
        told.push(why);
        let named = |other: &'_ Rejected| match other {
            Rejected::Import { name, why: reason } if reason == why => Some(short(name).into_owned()),
            _ => None,
        };
        let names: Vec<String> = all.iter().filter_map(named).collect();
        texts.push(match names.len() {
            1 => rejected.to_string(),
            _ => format!("the imports {} are not allowed: {why}", listed(&names, ", ", "others")),
        });
    }
    match texts.as_slice() {
        [one] => one.clone(),
        _ => listed(&texts, "; ", "reasons more, which `statehouse module check FILE` lists"),
    }
}

/// The first of them.
fn listed(texts: &[String], between: &str, more: &str) -> String {
    let shown = texts[..texts.len().min(REASONS_MAX)].join(between);
    match texts.len().saturating_sub(REASONS_MAX) {
        0 => shown,
        left => format!("{shown}{between}and {left} {more}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn import(name: &str, why: &str) -> Rejected {
        Rejected::Import { name: name.into(), why: why.into() }
    }

    #[test]
    fn reasons_are_told_in_one_line_and_imports_with_one_reason_together() {
        let missing = Rejected::MissingExport { name: "b".into(), world: "stored", instead: None };
        let all = Rejected::all(vec![import("x", "no"), import("y", "never"), import("z", "no"), missing]);
        let told = all.unwrap().to_string();
        assert!(
            told.starts_with(
                "the module is refused: the imports x, z are not allowed: no; the import y is not allowed: \
                 never; the export b is missing, which the world stored demands: build"
            ),
            "{told}"
        );
        assert_eq!(Rejected::all(vec![import("x", "no")]), Some(import("x", "no")));
        assert_eq!(Rejected::all(Vec::new()), None);
    }

    #[test]
    fn a_text_is_bounded_whatever_the_names_are() {
        let long = "é".repeat(50_000);
        let one = import(&long, "no").to_string();
        assert!(one.contains("... (100000 bytes)") && one.len() < 200, "{one}");
        let same = Rejected::Several((0..20_000).map(|_| import(&long, "no")).collect()).to_string();
        assert!(same.contains("and 19994 others are not allowed: no") && same.len() < 2_000, "{same}");
        let other = (0..20_000).map(|n| import(&long, &n.to_string())).collect();
        let other = Rejected::Several(other).to_string();
        assert!(other.contains("and 19994 reasons more") && other.len() < 2_000, "{other}");
    }
}
