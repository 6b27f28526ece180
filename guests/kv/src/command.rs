//! The envelope around etcd's bytes: one byte that says which request follows.

use prost::Message;

use crate::messages::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, StatusRequest, TxnRequest,
};
use crate::refusal::Refusal;

/// Which request the bytes after the first one are. The first four numbers are those of etcd's `RequestOp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// `RangeRequest`, answered by `RangeResponse`: in a query, or in a command to be read at its place in
    /// the log.
    Range = 1,
    /// `PutRequest`, answered by `PutResponse`: in a command.
    Put = 2,
    /// `DeleteRangeRequest`, answered by `DeleteRangeResponse`: in a command.
    DeleteRange = 3,
    /// `TxnRequest`, answered by `TxnResponse`: in a command, or in a query if no branch writes.
    Txn = 4,
    /// `CompactionRequest`, answered by `CompactionResponse`: in a command.
    Compaction = 5,
    /// `StatusRequest`, answered by `StatusResponse`: in a query.
    Status = 6,
}

impl Kind {
    /// Splits an envelope.
    pub fn split(bytes: &[u8]) -> Result<(Kind, &[u8]), Refusal> {
        let (&first, request) = bytes
            .split_first()
            .ok_or_else(|| Refusal::malformed("it is empty; the first byte names its kind"))?;
        let kind = match first {
            1 => Kind::Range,
            2 => Kind::Put,
            3 => Kind::DeleteRange,
            4 => Kind::Txn,
            5 => Kind::Compaction,
            6 => Kind::Status,
            other => {
                return Err(Refusal::malformed(format_args!("its first byte is {other}; kinds are 1 to 6")));
            }
        };
        Ok((kind, request))
    }

    /// Puts an encoded request into its envelope: what a proxy of etcd's protocol does with a client's
    /// bytes.
    pub fn envelope(self, request: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(1 + request.len());
        bytes.push(self as u8);
        bytes.extend_from_slice(request);
        bytes
    }
}

/// A request that knows its envelope and its answer.
pub trait Call: Message + Sized {
    /// The first byte of its envelope.
    const KIND: Kind;
    /// What the machine answers with.
    type Answer: Message + Default;

    /// The bytes for `apply` or `query`.
    fn to_envelope(&self) -> Vec<u8> {
        Self::KIND.envelope(&self.encode_to_vec())
    }

    /// Reads the machine's answer.
    fn answer(bytes: &[u8]) -> Result<Self::Answer, prost::DecodeError> {
        Self::Answer::decode(bytes)
    }
}

macro_rules! calls {
    ($($request:ident $kind:ident $answer:ident,)*) => {
        $(impl Call for $request {
            const KIND: Kind = Kind::$kind;
            type Answer = crate::messages::$answer;
        })*
    };
}

calls! {
    RangeRequest Range RangeResponse,
    PutRequest Put PutResponse,
    DeleteRangeRequest DeleteRange DeleteRangeResponse,
    TxnRequest Txn TxnResponse,
    CompactionRequest Compaction CompactionResponse,
    StatusRequest Status StatusResponse,
}

/// Decodes a request of the machine's own limits.
pub(crate) fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, Refusal> {
    M::decode(bytes).map_err(Refusal::malformed)
}
