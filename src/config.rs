//! What an operator may set: defaults, ranges, and the reading of a configuration file.
//!
//! A file is read as a whole: every mistake in it is reported at once, each with its line and with what would
//! be right. Nothing that is written there is ever ignored. Every number has its unit in its name and a
//! range.

use std::fmt;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Where a node listens for clients, unless told otherwise; also where clients look for one.
pub const CLIENT_ADDRESS: &str = "127.0.0.1:7070";
/// Where a node listens for other nodes, unless told otherwise.
pub const PEER_ADDRESS: &str = "127.0.0.1:7071";
/// The machine that answers clients of etcd, unless told otherwise.
pub const ETCD_MACHINE: &str = "kv";

/// Where a node listens: `host:port`; port 0 leaves the choice to the system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// For clients (gRPC).
    pub client: String,
    /// For other nodes; none: the node is alone for ever.
    pub peer: Option<String>,
    /// The name or address of this computer for others, if that is not the one it listens on.
    pub advertise: Option<String>,
    /// For metrics and health over HTTP, if anywhere.
    pub http: Option<String>,
    /// For clients of etcd, if anywhere.
    pub etcd: Option<EtcdListen>,
}

/// Where a node serves etcd's API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdListen {
    /// Where it listens.
    pub address: String,
    /// The machine that answers.
    pub machine: String,
}

impl Default for Listen {
    fn default() -> Listen {
        let (client, peer) = (CLIENT_ADDRESS.into(), Some(PEER_ADDRESS.into()));
        Listen { client, peer, advertise: None, http: None, etcd: None }
    }
}

/// One number that can be set.
struct Setting<T: 'static> {
    name: &'static str,
    doc: &'static [&'static str],
    default: u64,
    min: u64,
    max: u64,
    set: fn(&mut T, u64),
}

/// A table of numbers, as a struct of the library and as a section of the file.
trait Section: Default + 'static {
    const NAME: &'static str;
    const SETTINGS: &'static [Setting<Self>];
}

/// Declares a [`Section`]: each number once, with its default and range.
macro_rules! section {
    (
        $(#[$doc:meta])*
        $section:ident = $key:literal {
            $($(#[doc = $field_doc:literal])+ $field:ident: $type:ty = $default:expr, $min:expr, $max:expr;)+
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $section {
            $($(#[doc = $field_doc])+ pub $field: $type,)+
        }

        impl Default for $section {
            fn default() -> $section {
                $section { $($field: $default,)+ }
            }
        }

        impl Section for $section {
            const NAME: &'static str = $key;
            const SETTINGS: &'static [Setting<$section>] = &[$(
                Setting {
                    name: stringify!($field),
                    doc: &[$($field_doc),+],
                    default: $default,
                    min: $min,
                    max: $max,
                    set: |section, value| section.$field = value as $type,
                },
            )+];
        }
    };
}

section! {
    /// What requests may be. `[limits]` in the file.
    Limits = "limits" {
        /// Bytes of a module, at most.
        module_bytes_max: u64 = 64 << 20, 1 << 10, 1 << 30;
        /// Bytes of a command and of a machine's configuration, at most.
        command_bytes_max: u64 = 2 << 20, 1 << 10, 16 << 20;
        /// Bytes of a query's request, at most.
        query_bytes_max: u64 = 2 << 20, 1 << 10, 16 << 20;
        /// Requests of one stream that are under way at the same time, at most.
        stream_requests_max: u32 = 4_096, 1, 65_536;
        /// Bytes of the requests of one stream that are under way. The server stops reading when they are
        /// reached.
        stream_bytes_max: u64 = 16 << 20, 1 << 20, 1 << 30;
        /// How long a read waits for this node to catch up.
        read_wait_ms: u64 = 10_000, 10, 600_000;
        /// Watches through this node at the same time, at most.
        watches_max: u32 = 100_000, 1, 10_000_000;
        /// Of those, watches of machines that have no replica on this node, at most: each holds a question to
        /// another node.
        remote_watches_max: u32 = 1_000, 0, 10_000_000;
        /// Watches of one stream, at most.
        stream_watches_max: u32 = 10_000, 1, 1_000_000;
        /// Bytes of events that wait for watches to be read, of all together, at most: three quarters in
        /// queues, a quarter read from disk. Watches that find no room read from disk, a revision at a time.
        watch_queue_bytes_max: u64 = 64 << 20, 1 << 20, 64 << 30;
        /// After so long without a word, a watch that asked for progress marks is told that it has
        /// everything.
        watch_progress_ms: u64 = 10_000, 10, 3_600_000;
        /// How long a stopping node waits for requests and guests under way.
        stop_wait_ms: u64 = 5_000, 0, 600_000;
    }
}

section! {
    /// What guests may use. `[guests]` in the file. Marked ones must be the same on all nodes of a cluster.
    Guests = "guests" {
        /// Linear memory of one instance, at most, in whole 64 KiB pages. Bound to the machines that are
        /// created with it: with another value they are not served. The same on all nodes.
        memory_bytes_max: u64 = 256 << 20, 1 << 20, 4 << 30;
        /// Instances alive at the same time, of all machines together. Costs address space, 4 GiB each, not
        /// memory.
        instances_max: u32 = 4_096, 16, 10_000;
        /// Fuel for each input, about one unit for each instruction, of machines created from now on: each
        /// keeps what it was created with.
        input_fuel: u64 = 1_000_000_000, 1_000_000, 1_000_000_000_000;
        /// Fuel for each query.
        query_fuel: u64 = 5_000_000_000, 1_000_000, 1_000_000_000_000;
        /// Time for each query.
        query_time_ms: u64 = 5_000, 10, 600_000;
        /// Memory of the process that compiles a module, at most.
        compile_memory_bytes_max: u64 = 3 << 30, 64 << 20, 64 << 30;
        /// Processor time for compiling a module, at most.
        compile_seconds_max: u64 = 60, 1, 3_600;
        /// Threads that apply batches; more start for a while when slow machines hold these.
        apply_threads: u32 = 4, 1, 256;
    }
}

section! {
    /// How state is kept. `[storage]` in the file.
    Storage = "storage" {
        /// State written since the last flush that calls for the next one. A restart replays at most about
        /// this much.
        flush_bytes: u64 = 32 << 20, 1 << 20, 16 << 30;
        /// How often state is flushed if anything was written.
        flush_interval_ms: u64 = 60_000, 100, 86_400_000;
        /// Log entries between two snapshots of a resident machine.
        resident_snapshot_entries: u64 = 10_000, 10, 100_000_000;
        /// Log entries that are kept for replicas that lag; those further behind get a snapshot.
        log_keep_entries: u64 = 10_000, 0, 100_000_000;
        /// Bytes of them, of each machine, at most about.
        log_keep_bytes: u64 = 64 << 20, 0, 1 << 40;
    }
}

/// A configuration file, as far as it says anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigFile {
    /// `data_dir`
    pub data_dir: Option<PathBuf>,
    /// `name`
    pub name: Option<String>,
    /// `bootstrap`
    pub bootstrap: Option<bool>,
    /// `join`
    pub join: Vec<String>,
    /// `listen.client`
    pub client: Option<String>,
    /// `listen.peer`
    pub peer: Option<String>,
    /// `listen.http`
    pub http: Option<String>,
    /// `listen.etcd`
    pub etcd: Option<String>,
    /// `listen.etcd_machine`
    pub etcd_machine: Option<String>,
    /// `otlp`
    pub otlp: Option<String>,
    /// `listen.advertise`
    pub advertise: Option<String>,
    /// `[limits]`, with the defaults of what is not there.
    pub limits: Limits,
    /// `[guests]`, likewise.
    pub guests: Guests,
    /// `[storage]`, likewise.
    pub storage: Storage,
}

/// All that is wrong with a configuration file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            let end = if i + 1 < self.0.len() { "\n" } else { "" };
            write!(f, "line {}: {}{end}", error.line, error.message)?;
        }
        Ok(())
    }
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigError {
    /// Where: the first line is 1.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl ConfigFile {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// All mistakes, in the order of their lines.
    pub fn parse(text: &str) -> Result<ConfigFile, ConfigErrors> {
        let (root, syntax) = DeTable::parse_recoverable(text);
        let mut reader = Reader { text, errors: Vec::new() };
        for error in &syntax {
            reader.error(error.span().map_or(0, |span| span.start), error.message());
        }
        let broken: Vec<usize> = reader.errors.iter().map(|error| error.line).collect();
        let file = reader.root(root.get_ref());
        // What the parser made of a line that it could not read is not the operator's mistake.
        let read = reader.errors.split_off(broken.len());
        reader.errors.extend(read.into_iter().filter(|error| !broken.contains(&error.line)));
        if reader.errors.is_empty() {
            return Ok(file);
        }
        reader.errors.sort();
        Err(ConfigErrors(reader.errors))
    }
}

/// The keys outside of any section.
const ROOT_KEYS: &str = "data_dir, name, bootstrap, join, otlp, [listen], [limits], [guests], [storage]";

/// Those of `[listen]`.
const LISTEN_KEYS: &str = "client, peer, http, advertise, etcd, etcd_machine";

struct Reader<'t> {
    text: &'t str,
    errors: Vec<ConfigError>,
}

impl Reader<'_> {
    fn error(&mut self, position: usize, message: impl Into<String>) {
        let before = self.text.get(..position).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        self.errors.push(ConfigError { line, message: message.into() });
    }

    fn root(&mut self, root: &DeTable) -> ConfigFile {
        let mut file = ConfigFile::default();
        for (key, value) in root {
            match key.get_ref().as_ref() {
                "data_dir" => file.data_dir = self.text("data_dir", value).map(PathBuf::from),
                "name" => file.name = self.name(value),
                "bootstrap" => file.bootstrap = self.truth("bootstrap", value),
                "join" => file.join = self.addresses("join", value),
                "otlp" => file.otlp = self.address("otlp", value),
                "listen" => self.listen(value, &mut file),
                "limits" => file.limits = self.section(value),
                "guests" => file.guests = self.section(value),
                "storage" => file.storage = self.section(value),
                other => {
                    self.error(key.span().start, format!("unknown key `{other}`; there are {ROOT_KEYS}"));
                }
            }
        }
        file
    }

    fn listen(&mut self, value: &Spanned<DeValue>, file: &mut ConfigFile) {
        let Some(table) = value.get_ref().as_table() else {
            return self.wrong_type("listen", value, "a table");
        };
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "client" => file.client = self.address("listen.client", value),
                "peer" => file.peer = self.address("listen.peer", value),
                "http" => file.http = self.address("listen.http", value),
                "etcd" => file.etcd = self.address("listen.etcd", value),
                "etcd_machine" => file.etcd_machine = self.text("listen.etcd_machine", value),
                "advertise" => file.advertise = self.text("listen.advertise", value),
                other => {
                    let message = format!("unknown key `listen.{other}`; there are {LISTEN_KEYS}");
                    self.error(key.span().start, message);
                }
            }
        }
    }

    fn section<T: Section>(&mut self, value: &Spanned<DeValue>) -> T {
        let mut section = T::default();
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(T::NAME, value, "a table");
            return section;
        };
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            match T::SETTINGS.iter().find(|setting| setting.name == name) {
                Some(setting) => {
                    if let Some(number) = self.number(T::NAME, setting, value) {
                        (setting.set)(&mut section, number);
                    }
                }
                None => {
                    let names: Vec<_> = T::SETTINGS.iter().map(|setting| setting.name).collect();
                    let message = format!("unknown key `{}.{name}`; there are {}", T::NAME, names.join(", "));
                    self.error(key.span().start, message);
                }
            }
        }
        section
    }

    fn number<T>(&mut self, section: &str, setting: &Setting<T>, value: &Spanned<DeValue>) -> Option<u64> {
        let Setting { name, min, max, .. } = setting;
        let key = format!("{section}.{name}");
        let expected = format!("a whole number from {min} to {max}");
        let Some(integer) = value.get_ref().as_integer() else {
            self.wrong_type(&key, value, &expected);
            return None;
        };
        let digits = integer.as_str();
        match u64::from_str_radix(digits, integer.radix()) {
            Ok(number) if (*min..=*max).contains(&number) => Some(number),
            _ => {
                self.error(value.span().start, format!("`{key}` is {digits}; it must be {expected}"));
                None
            }
        }
    }

    fn name(&mut self, value: &Spanned<DeValue>) -> Option<String> {
        let name = self.text("name", value)?;
        match check_node_name(&name) {
            Ok(()) => Some(name),
            Err(message) => {
                self.error(value.span().start, message);
                None
            }
        }
    }

    fn address(&mut self, key: &str, value: &Spanned<DeValue>) -> Option<String> {
        let address = self.text(key, value)?;
        match check_address(&address) {
            Ok(()) => Some(address),
            Err(message) => {
                self.error(value.span().start, format!("`{key}`: {message}"));
                None
            }
        }
    }

    fn addresses(&mut self, key: &str, value: &Spanned<DeValue>) -> Vec<String> {
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type(key, value, "an array of strings");
            return Vec::new();
        };
        array.iter().filter_map(|value| self.address(key, value)).collect()
    }

    fn text(&mut self, key: &str, value: &Spanned<DeValue>) -> Option<String> {
        match value.get_ref().as_str() {
            Some("") => {
                self.error(
                    value.span().start,
                    format!("`{key}` is empty; leave the key out for the default"),
                );
                None
            }
            Some(text) => Some(text.to_string()),
            None => {
                self.wrong_type(key, value, "a string");
                None
            }
        }
    }

    fn truth(&mut self, key: &str, value: &Spanned<DeValue>) -> Option<bool> {
        let truth = value.get_ref().as_bool();
        if truth.is_none() {
            self.wrong_type(key, value, "true or false");
        }
        truth
    }

    fn wrong_type(&mut self, key: &str, value: &Spanned<DeValue>, expected: &str) {
        let found = value.get_ref().type_str();
        self.error(
            value.span().start,
            format!("`{key}` is a value of the type {found}; it must be {expected}"),
        );
    }
}

/// Whether `address` has the form `host:port`.
///
/// # Errors
/// A sentence that names the address and the form.
pub fn check_address(address: &str) -> Result<(), String> {
    let well_formed =
        address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if well_formed {
        return Ok(());
    }
    Err(format!("{address:?} is not an address: host:port is expected, such as {CLIENT_ADDRESS}"))
}

/// Whether a node may have this name: it goes into a data directory, metrics and logs.
///
/// # Errors
/// A sentence that names the name and what is allowed.
pub fn check_node_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if (1..=64).contains(&name.len()) && name.chars().all(allowed) {
        return Ok(());
    }
    Err(format!("{name:?} is no name for a node: 1 to 64 letters, digits, `-`, `_` and `.` are allowed"))
}

/// A configuration file with every setting, its meaning, default and range, all commented out.
pub fn example() -> String {
    let mut text = format!(
        "# Statehouse: every setting with its default. Flags of `statehouse serve` go before this file.\n\n\
         #data_dir = \"statehouse-data\"\n#name = \"node-1\"\n\
         # Begin a new cluster if the data directory is empty.\n#bootstrap = false\n\
         # Or join one: client addresses of nodes of it.\n#join = [\"10.0.0.1:7070\"]\n\
         # Where the spans of traced requests go (OTLP over gRPC); without it, to the log.\n\
         #otlp = \"127.0.0.1:4317\"\n\n\
         [listen]\n#client = \"{CLIENT_ADDRESS}\"\n#peer = \"{PEER_ADDRESS}\"\n\
         # What others call this computer, if it listens on all its addresses.\n\
         #advertise = \"node-1.example.com\"\n\
         # Metrics and health; without it there is no HTTP.\n#http = \"127.0.0.1:7072\"\n"
    );
    section_example::<Limits>(&mut text);
    section_example::<Guests>(&mut text);
    section_example::<Storage>(&mut text);
    text
}

fn section_example<T: Section>(text: &mut String) {
    text.push_str(&format!("\n[{}]\n", T::NAME));
    for setting in T::SETTINGS {
        for line in setting.doc {
            text.push_str(&format!("#{line}\n"));
        }
        let Setting { name, default, min, max, .. } = setting;
        text.push_str(&format!("# From {min} to {max}.\n#{name} = {default}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(text: &str) -> Vec<(usize, String)> {
        let errors = ConfigFile::parse(text).expect_err("the file has mistakes").0;
        errors.into_iter().map(|error| (error.line, error.message)).collect()
    }

    #[test]
    fn an_empty_file_sets_nothing() {
        assert_eq!(ConfigFile::parse("").unwrap(), ConfigFile::default());
    }

    #[test]
    fn a_full_file_is_read() {
        let file = ConfigFile::parse(
            "data_dir = '/srv/s'\nname = \"a-1\"\nbootstrap = true\n\
             [listen]\nclient = '0.0.0.0:1'\npeer = '[::1]:2'\nhttp = 'localhost:0'\n\
             [limits]\nmodule_bytes_max = 0x100000\n[storage]\nflush_bytes = 2_000_000\n",
        )
        .unwrap();
        assert_eq!(file.data_dir, Some("/srv/s".into()));
        assert_eq!(file.name.as_deref(), Some("a-1"));
        assert_eq!(file.bootstrap, Some(true));
        assert_eq!(file.client.as_deref(), Some("0.0.0.0:1"));
        assert_eq!(file.peer.as_deref(), Some("[::1]:2"));
        assert_eq!(file.http.as_deref(), Some("localhost:0"));
        assert_eq!(file.limits, Limits { module_bytes_max: 1 << 20, ..Limits::default() });
        assert_eq!(file.storage, Storage { flush_bytes: 2_000_000, ..Storage::default() });
        assert_eq!(file.guests, Guests::default());
    }

    #[test]
    fn all_mistakes_are_told_at_once_with_their_lines() {
        let found = errors(
            "nam = 'x'\nbootstrap = 'yes'\nname = 'a b'\n[listen]\nclient = '7070'\nhtpp = \
             'x:1'\n[limits]\ncommand_bytes_max = 1\nmodule_bytes = 5\nread_wait_ms = \
             -3\n[gusts]\n[storage]\nflush_bytes = 1.5\n",
        );
        let lines: Vec<usize> = found.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [1, 2, 3, 5, 6, 8, 9, 10, 11, 13], "{found:#?}");
        let told = |line: usize, parts: &[&str]| {
            let (_, message) = found.iter().find(|(l, _)| *l == line).expect("a message for the line");
            parts.iter().for_each(|part| assert!(message.contains(part), "{message:?} lacks {part:?}"));
        };
        told(1, &["`nam`", "name", "data_dir"]);
        told(2, &["`bootstrap`", "string", "true or false"]);
        told(3, &["\"a b\""]);
        told(5, &["listen.client", "\"7070\"", "host:port"]);
        told(6, &["`listen.htpp`", "client, peer, http"]);
        told(8, &["`limits.command_bytes_max` is 1", "1024", "16777216"]);
        told(9, &["`limits.module_bytes`", "module_bytes_max"]);
        told(10, &["-3"]);
        told(11, &["`gusts`", "[guests]"]);
        told(13, &["`storage.flush_bytes`", "float", "whole number"]);
    }

    #[test]
    fn a_mistake_in_the_syntax_does_not_hide_the_others() {
        let found = errors("name = \nbootstraap = true\n");
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!((found[0].0, found[1].0), (1, 2));
    }

    #[test]
    fn a_section_that_is_a_number_is_a_mistake() {
        assert!(errors("limits = 3")[0].1.contains("a table"));
        assert!(errors("[[listen]]\n")[0].1.contains("a table"));
    }

    #[test]
    fn every_default_is_within_its_range() {
        fn check<T: Section>() {
            for setting in T::SETTINGS {
                let Setting { name, default, min, max, .. } = setting;
                assert!((min..=max).contains(&default), "{name}: {default} is not in {min}..={max}");
            }
        }
        check::<Limits>();
        check::<Guests>();
        check::<Storage>();
    }

    #[test]
    fn every_end_of_a_range_fits_its_type() {
        fn check<T: Section + PartialEq + fmt::Debug>(back: impl Fn(&T, &str) -> u64) {
            for setting in T::SETTINGS {
                for value in [setting.min, setting.max] {
                    let mut section = T::default();
                    (setting.set)(&mut section, value);
                    assert_eq!(back(&section, setting.name), value, "{}", setting.name);
                }
            }
        }
        /// The number that the debug form shows for a field.
        fn shown(section: &impl fmt::Debug, name: &str) -> u64 {
            let text = format!("{section:?}");
            let from = text.find(&format!(" {name}: ")).expect("the field") + name.len() + 3;
            let digits: String = text[from..].chars().take_while(char::is_ascii_digit).collect();
            digits.parse().expect("a number")
        }
        check::<Limits>(shown);
        check::<Guests>(shown);
        check::<Storage>(shown);
    }

    #[test]
    fn the_example_reads_as_the_defaults_also_when_uncommented() {
        assert_eq!(ConfigFile::parse(&example()).unwrap(), ConfigFile::default());
        let uncommented: String = example()
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let file = ConfigFile::parse(&uncommented).unwrap();
        assert_eq!(file.limits, Limits::default());
        assert_eq!(file.client.as_deref(), Some(CLIENT_ADDRESS));
        assert_eq!(file.name.as_deref(), Some("node-1"));
    }
}
