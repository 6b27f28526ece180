//! Traces: a request that is to be followed carries the name of its trace, in the form of the W3C's Trace
//! Context, from the client through every node that does something for it. Each of them makes a span there.
//!
//! Promises: a request that carries nothing costs nothing. Must never change what a machine computes: no
//! guest sees any of it.
//!
//! # Spans
//! `request` on the node that a client asked; `forward` while another node has it; `commit` on the leader,
//! from its arrival until a majority has it on disk; `apply` on every node that has a replica.

use std::fmt;
use std::str::FromStr;

use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::id::{GroupId, Index, NodeId};

/// The target of all spans of requests: what a filter of the log knows them by.
pub const TARGET: &str = "statehouse::trace";

/// The header in which a client says that a request is traced.
pub const HEADER: &str = "traceparent";

/// The trace that a request belongs to, and the span that the next one is within.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace: [u8; 16],
    span: [u8; 8],
}

/// A `traceparent` that is none, or of a request that is not traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the context of a trace: 00-(32 hexadecimal digits)-(16)-01 is expected")]
pub struct NotTraced;

impl FromStr for TraceContext {
    type Err = NotTraced;

    /// Reads a `traceparent`. Versions that are not known yet begin like the first one.
    fn from_str(text: &str) -> Result<TraceContext, NotTraced> {
        let mut parts = text.split('-');
        let mut part = |digits: usize| parts.next().filter(|part| part.len() == digits).ok_or(NotTraced);
        let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        let mut context = TraceContext { trace: [0; 16], span: [0; 8] };
        hex::decode_to_slice(trace, &mut context.trace).map_err(|_| NotTraced)?;
        hex::decode_to_slice(span, &mut context.span).map_err(|_| NotTraced)?;
        let sampled = u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 == 1);
        let version = u8::from_str_radix(version, 16).is_ok_and(|version| version != 0xff);
        let named = context.trace != [0; 16] && context.span != [0; 8];
        if version && sampled && named { Ok(context) } else { Err(NotTraced) }
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-01", hex::encode(self.trace), hex::encode(self.span))
    }
}

impl TraceContext {
    /// Bytes of a context among nodes and in the log.
    const BYTES: usize = 24;

    /// A new trace, named by chance.
    pub fn new(chance: [u64; 3]) -> TraceContext {
        let [first, second, third] = chance.map(u64::to_be_bytes);
        let mut context = TraceContext { trace: [0; 16], span: third };
        context.trace[..8].copy_from_slice(&first);
        context.trace[8..].copy_from_slice(&second);
        // Zeros are no name.
        context.trace[0] |= 1;
        context.span[0] |= 1;
        context
    }

    fn from_array(bytes: [u8; Self::BYTES]) -> TraceContext {
        let mut context = TraceContext { trace: [0; 16], span: [0; 8] };
        context.trace.copy_from_slice(&bytes[..16]);
        context.span.copy_from_slice(&bytes[16..]);
        context
    }

    /// As nodes send it to each other.
    pub fn to_bytes(self) -> Vec<u8> {
        [&self.trace[..], &self.span[..]].concat()
    }

    /// Reads [`to_bytes`](TraceContext::to_bytes). Nothing is no trace, and so is what a newer node may have
    /// put there.
    pub fn from_bytes(bytes: &[u8]) -> Option<TraceContext> {
        bytes.try_into().ok().map(TraceContext::from_array)
    }

    /// The trace's name: 32 hexadecimal digits.
    pub fn trace_id(&self) -> String {
        hex::encode(self.trace)
    }

    /// The span of a request at the node that a client asked, and the context for what is done within it.
    pub fn request(self, kind: &'static str, machine: &str) -> (Span, TraceContext) {
        let trace = self.trace_id();
        let span = tracing::info_span!(target: TARGET, "request", trace, kind, machine);
        let within = self.adopt(&span);
        (span, within)
    }

    /// The span of a request while another node has it.
    pub fn forward(self, to: NodeId) -> (Span, TraceContext) {
        let trace = self.trace_id();
        let span = tracing::info_span!(target: TARGET, "forward", trace, %to);
        let within = self.adopt(&span);
        (span, within)
    }

    /// The span of a command from its arrival at the leader until it is committed.
    pub fn commit(self, group: GroupId) -> Span {
        let trace = self.trace_id();
        let span = tracing::info_span!(target: TARGET, "commit", trace, %group);
        self.adopt(&span);
        span
    }

    /// The span of a command while a replica applies its batch.
    pub fn apply(self, node: &str, group: GroupId, index: Index) -> Span {
        let trace = self.trace_id();
        let span = tracing::info_span!(target: TARGET, "apply", trace, node, %group, %index);
        self.adopt(&span);
        span
    }

    /// Puts a span within this one. The context of what is within the new span; without an exporter spans
    /// have no names, and it is the same.
    fn adopt(self, span: &Span) -> TraceContext {
        let (trace, parent) = (TraceId::from_bytes(self.trace), SpanId::from_bytes(self.span));
        let parent = SpanContext::new(trace, parent, TraceFlags::SAMPLED, true, TraceState::NONE);
        // Fails if nothing exports spans, or if the log's filter leaves this one out.
        if span.set_parent(opentelemetry::Context::new().with_remote_span_context(parent)).is_err() {
            return self;
        }
        let own = span.context().span().span_context().span_id();
        if own == SpanId::INVALID { self } else { TraceContext { span: own.to_bytes(), ..self } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_context_comes_back_as_text_and_as_bytes() {
        let context: TraceContext = TEXT.parse().unwrap();
        assert_eq!(context.to_string(), TEXT);
        assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(TraceContext::from_bytes(&context.to_bytes()), Some(context));
        assert_eq!(TraceContext::from_bytes(&[]), None);
        let new = TraceContext::new([0; 3]);
        assert_eq!(new.to_string().parse(), Ok(new));
    }

    #[test]
    fn what_is_not_traced_or_no_context_is_told_apart_from_what_is() {
        let newer = TEXT.replacen("00", "01", 1) + "-more";
        assert!(newer.parse::<TraceContext>().is_ok());
        for text in [
            "",
            "00",
            &TEXT[..54],
            &TEXT.replace("-01", "-00"),
            &TEXT.replacen("00-", "ff-", 1),
            &TEXT.replace("4bf9", "4bg9"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        ] {
            assert_eq!(text.parse::<TraceContext>(), Err(NotTraced), "{text}");
        }
    }

    #[test]
    fn without_an_exporter_what_is_within_a_span_has_the_same_context() {
        let context: TraceContext = TEXT.parse().unwrap();
        let (span, within) = context.request("command", "kv");
        assert_eq!(within, context);
        drop(span);
    }
}
