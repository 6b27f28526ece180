//! An answer as it is compared: every field as text, but for what two servers cannot have in common.
//!
//! Set aside are the ids of clusters and members, terms (whether there is one is compared), the rest of a
//! lease's time, and the order of lists that etcd leaves to chance.

use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hash, Hasher};

use statehouse::proto::etcd::etcdserverpb::{
    LeaseGrantResponse, LeaseKeepAliveResponse, LeaseLeasesResponse, LeaseRevokeResponse,
    LeaseTimeToLiveResponse,
};
use statehouse_kv::messages::{
    CompactionResponse, DeleteRangeResponse, PutResponse, RangeResponse, Response, ResponseHeader,
    TxnResponse,
};
use tonic::Status;

/// Leases from this id on are short: they may end between two requests.
pub const SHORT_LEASES: i64 = 1 << 40;

/// How much of a lease's time may have gone by, in seconds, and the lease still count as fresh.
const SECONDS_AGO_MAX: i64 = 300;

/// Byte strings over this length are shown by their beginning and a hash.
const SHOWN_BYTES_MAX: usize = 48;

/// An answer, readable and comparable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    text: String,
    /// The store's revision, if the answer says it.
    pub revision: Option<i64>,
    pub is_error: bool,
}

impl Answer {
    /// Puts another answer of the same stream behind this one.
    pub fn add(&mut self, other: Answer) {
        self.text += &other.text;
        self.text.push('\n');
        self.revision = other.revision.or(self.revision);
        self.is_error |= other.is_error;
    }

    pub fn of(text: String) -> Answer {
        Answer { text, ..Answer::default() }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// An error: its code and its words, which clients of etcd compare.
pub fn failed(status: &Status) -> Answer {
    let text = format!("error {:?}: {}", status.code(), status.message());
    Answer { text, is_error: true, ..Answer::default() }
}

/// A message of which some fields are set aside before it is compared.
pub trait Compared: fmt::Debug + Sized {
    /// Sets fields aside, and gives the header.
    fn set_aside(&mut self) -> &mut Option<ResponseHeader>;

    fn answer(mut self) -> Answer {
        let header = self.set_aside();
        let revision = header.as_ref().map(|header| header.revision);
        head(header);
        Answer { text: readable(&format!("{self:?}")), revision, is_error: false }
    }
}

/// Of ids and terms only whether there is one.
fn head(header: &mut Option<ResponseHeader>) {
    if let Some(header) = header {
        header.cluster_id = header.cluster_id.min(1);
        header.member_id = header.member_id.min(1);
        header.raft_term = header.raft_term.min(1);
    }
}

macro_rules! only_headers {
    ($($message:ty),*) => {
        $(impl Compared for $message {
            fn set_aside(&mut self) -> &mut Option<ResponseHeader> {
                &mut self.header
            }
        })*
    };
}

only_headers!(
    RangeResponse,
    PutResponse,
    DeleteRangeResponse,
    CompactionResponse,
    LeaseGrantResponse,
    LeaseRevokeResponse,
    LeaseKeepAliveResponse
);

impl Compared for TxnResponse {
    fn set_aside(&mut self) -> &mut Option<ResponseHeader> {
        for step in &mut self.responses {
            match &mut step.response {
                Some(Response::ResponseRange(range)) => head(&mut range.header),
                Some(Response::ResponsePut(put)) => head(&mut put.header),
                Some(Response::ResponseDeleteRange(delete)) => head(&mut delete.header),
                Some(Response::ResponseTxn(txn)) => head(txn.set_aside()),
                None => {}
            }
        }
        &mut self.header
    }
}

impl Compared for LeaseTimeToLiveResponse {
    fn set_aside(&mut self) -> &mut Option<ResponseHeader> {
        // Some time has gone by since the grant, not the same on both sides.
        if self.ttl >= 0 && (self.granted_ttl - SECONDS_AGO_MAX..=self.granted_ttl).contains(&self.ttl) {
            self.ttl = self.granted_ttl;
        }
        self.keys.sort();
        &mut self.header
    }
}

impl Compared for LeaseLeasesResponse {
    fn set_aside(&mut self) -> &mut Option<ResponseHeader> {
        // etcd sorts by the time that is left.
        self.leases.retain(|lease| lease.id < SHORT_LEASES);
        self.leases.sort_by_key(|lease| lease.id);
        &mut self.header
    }
}

/// Rewrites lists of numbers, which is how byte strings are printed, as text.
pub fn readable(debug: &str) -> String {
    let mut out = String::with_capacity(debug.len());
    let mut rest = debug;
    while let Some(start) = rest.find('[') {
        let (before, list) = rest.split_at(start);
        out += before;
        match list.find(']').map(|end| (&list[1..end], end)) {
            Some((inner, end)) if is_bytes(inner) => {
                show_bytes(&mut out, inner);
                rest = &list[end + 1..];
            }
            _ => {
                out.push('[');
                rest = &list[1..];
            }
        }
    }
    out + rest
}

fn is_bytes(inner: &str) -> bool {
    inner.bytes().all(|byte| byte.is_ascii_digit() || byte == b',' || byte == b' ')
}

fn show_bytes(out: &mut String, inner: &str) {
    let bytes: Vec<u8> = inner.split(", ").filter_map(|number| number.parse().ok()).collect();
    out.push('"');
    for byte in bytes.iter().take(SHOWN_BYTES_MAX) {
        // Writing to a string cannot fail.
        let _ = write!(out, "{}", byte.escape_ascii());
    }
    out.push('"');
    if bytes.len() > SHOWN_BYTES_MAX {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let _ = write!(out, "... ({} bytes, hash {:x})", bytes.len(), hasher.finish());
    }
}
