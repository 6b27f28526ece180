//! What is kept on disk of a replica whose state is not to be relied on.

use prost::Message;

use super::explanation::Explanation;
use super::lockstep::Contradiction;

/// The note. It stays until the state is replaced.
#[derive(Clone, PartialEq, Message)]
pub struct HaltNote {
    /// A sentence: why.
    #[prost(string, tag = "1")]
    pub why: String,
    /// The index of the beacon that this replica contradicted, if it halted for that.
    #[prost(uint64, optional, tag = "2")]
    pub contradicted: Option<u64>,
    /// Where it left the way of the others, once that was found out.
    #[prost(message, optional, tag = "3")]
    pub explanation: Option<Explanation>,
}

impl HaltNote {
    /// A note of why.
    pub fn new(why: &str) -> HaltNote {
        HaltNote { why: why.to_owned(), ..HaltNote::default() }
    }

    /// A note of a replica that differs from its leader.
    pub fn differs(found: &Contradiction) -> HaltNote {
        HaltNote { contradicted: Some(found.at.0), ..HaltNote::new(&found.why) }
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
