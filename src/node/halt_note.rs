//! What is kept on disk of a replica whose state is not to be relied on.

use prost::Message;

/// The note. It stays until the state is replaced.
#[derive(Clone, PartialEq, Message)]
pub struct HaltNote {
    /// A sentence: why.
    #[prost(string, tag = "1")]
    pub why: String,
}

impl HaltNote {
    /// A note of why.
    pub fn new(why: &str) -> HaltNote {
        HaltNote { why: why.to_owned() }
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    /// Reads a note. One that does not read still says that the state is not to be relied on.
    pub fn read(bytes: &[u8]) -> HaltNote {
        HaltNote::decode(bytes).unwrap_or_else(|e| {
            HaltNote::new(&format!("it is noted that its state is not to be relied on, but not why: {e}"))
        })
    }
}
