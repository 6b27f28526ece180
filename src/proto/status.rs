//! Errors on the wire: each [`Error`] becomes a gRPC status that a program can act on, and back.
//!
//! Every status of ours carries a `google.rpc.ErrorInfo` of the domain `statehouse`: a reason that names the
//! kind, and in its metadata `applied`: `no` if the request was certainly not carried out, `unknown` if it
//! may have been; and `leader`, the id of the node that leads, where that is why; and for a watch whose
//! history is gone `first-revision`, the first that is kept. Where waiting helps, a `google.rpc.RetryInfo`
//! says how long. What comes back without an `ErrorInfo` was not said by a node but by the network or the
//! gRPC library, and then nothing is certain; except for requests that did not leave, and those that the
//! other end says it did not look at (RFC 9113, sections 6.8 and 8.7): they were certainly not done.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::v1::Failure;
use crate::error::{Error, Fault};
use crate::id::{NodeId, Revision};

/// The domain of our reasons.
pub const DOMAIN: &str = "statehouse";
/// The metadata that tells whether a failed request can have been carried out: `no` or `unknown`.
pub const APPLIED: &str = "applied";
/// The metadata that tells which node leads, if that is known.
const LEADER_NODE: &str = "leader";
/// The metadata of events that are not kept any more: from which revision on they were asked for, and the
/// first one that is kept.
const ASKED_REVISION: &str = "asked-revision";
const FIRST_REVISION: &str = "first-revision";
/// How long a client should wait when a node is overloaded or has no leader.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// What a program is told of one kind of error.
struct Kind {
    reason: &'static str,
    code: Code,
    applied: &'static str,
    retry: bool,
}

impl Kind {
    const fn certain(reason: &'static str, code: Code) -> Kind {
        Kind { reason, code, applied: "no", retry: false }
    }

    const fn uncertain(reason: &'static str, code: Code) -> Kind {
        Kind { reason, code, applied: "unknown", retry: false }
    }

    const fn passing(reason: &'static str, code: Code) -> Kind {
        Kind { reason, code, applied: "no", retry: true }
    }
}

fn kind(error: &Error) -> Kind {
    match error {
        Error::Invalid(_) => Kind::certain("INVALID", Code::InvalidArgument),
        Error::NotFound(_) => Kind::certain("NOT_FOUND", Code::NotFound),
        Error::AlreadyExists(_) => Kind::certain("ALREADY_EXISTS", Code::AlreadyExists),
        Error::TooLarge(_) => Kind::certain("TOO_LARGE", Code::InvalidArgument),
        Error::FailedPrecondition(_) => Kind::certain("FAILED_PRECONDITION", Code::FailedPrecondition),
        Error::LimitReached(_) => Kind::certain("LIMIT_REACHED", Code::ResourceExhausted),
        // An earlier sending of the same command may have been applied.
        Error::SessionExpired(_) => Kind::uncertain("SESSION_EXPIRED", Code::FailedPrecondition),
        Error::NumberPassed(_) => Kind::uncertain("NUMBER_PASSED", Code::FailedPrecondition),
        Error::NumberAhead(_) => Kind::certain("NUMBER_AHEAD", Code::OutOfRange),
        Error::Overloaded(_) => Kind::passing("OVERLOADED", Code::ResourceExhausted),
        Error::Unavailable(_) => Kind::passing("UNAVAILABLE", Code::Unavailable),
        Error::NotLeader { .. } => Kind::passing("NOT_LEADER", Code::Unavailable),
        Error::Unknown(_) => Kind::uncertain("FATE_UNKNOWN", Code::Unknown),
        Error::DeadlineExceeded(_) => Kind::uncertain("DEADLINE_EXCEEDED", Code::DeadlineExceeded),
        Error::Compacted { .. } => Kind::certain("COMPACTED", Code::OutOfRange),
        Error::Guest(_) => Kind::certain("GUEST_FAILED", Code::Aborted),
        Error::Damaged(_) => Kind::uncertain("DAMAGED", Code::DataLoss),
        Error::Fault(_) => Kind::uncertain("NODE_FAILED", Code::Internal),
    }
}

fn metadata(error: &Error) -> HashMap<String, String> {
    let mut metadata = HashMap::from([(APPLIED.to_string(), kind(error).applied.to_string())]);
    if let Error::NotLeader { leader: Some(node) } = error {
        metadata.insert(LEADER_NODE.to_string(), node.to_string());
    }
    if let Error::Compacted { asked, first } = error {
        metadata.insert(ASKED_REVISION.to_string(), asked.to_string());
        metadata.insert(FIRST_REVISION.to_string(), first.to_string());
    }
    metadata
}

/// The error of a reason that a node sent.
fn from_reason(reason: &str, message: String, metadata: &HashMap<String, String>) -> Option<Error> {
    let revision = |key: &str| metadata.get(key).and_then(|text| text.parse().ok()).map(Revision);
    Some(match reason {
        "INVALID" => Error::Invalid(message),
        "NOT_FOUND" => Error::NotFound(message),
        "ALREADY_EXISTS" => Error::AlreadyExists(message),
        "TOO_LARGE" => Error::TooLarge(message),
        "FAILED_PRECONDITION" => Error::FailedPrecondition(message),
        "LIMIT_REACHED" => Error::LimitReached(message),
        "SESSION_EXPIRED" => Error::SessionExpired(message),
        "NUMBER_PASSED" => Error::NumberPassed(message),
        "NUMBER_AHEAD" => Error::NumberAhead(message),
        "OVERLOADED" => Error::Overloaded(message),
        "UNAVAILABLE" => Error::Unavailable(message),
        "NOT_LEADER" => Error::NotLeader {
            leader: metadata.get(LEADER_NODE).and_then(|node| node.parse().ok()).map(NodeId),
        },
        "FATE_UNKNOWN" => Error::Unknown(message),
        "DEADLINE_EXCEEDED" => Error::DeadlineExceeded(message),
        "COMPACTED" => {
            Error::Compacted { asked: revision(ASKED_REVISION)?, first: revision(FIRST_REVISION)? }
        }
        "GUEST_FAILED" => Error::Guest(message),
        "DAMAGED" => Error::Damaged(message),
        "NODE_FAILED" => Error::Fault(Fault::new(message)),
        _ => return None,
    })
}

/// The name of an error's kind, for programs.
pub fn reason(error: &Error) -> &'static str {
    kind(error).reason
}

/// The status that a client gets for `error`.
pub fn to_status(error: &Error) -> Status {
    let kind = kind(error);
    let mut details = ErrorDetails::with_error_info(kind.reason, DOMAIN, metadata(error));
    if kind.retry {
        details.set_retry_info(Some(RETRY_DELAY));
    }
    Status::with_error_details(kind.code, error.to_string(), details)
}

/// The same for one request of a stream, whose other requests go on.
pub fn to_failure(error: &Error) -> Failure {
    let kind = kind(error);
    Failure {
        code: kind.code as i32,
        message: error.to_string(),
        reason: kind.reason.to_string(),
        metadata: metadata(error),
    }
}

/// The error that a node told in a stream.
pub fn from_failure(failure: Failure) -> Error {
    let Failure { code, message, reason, metadata } = failure;
    let certain = metadata.get(APPLIED).is_some_and(|applied| applied == "no");
    from_reason(&reason, message.clone(), &metadata)
        .unwrap_or_else(|| from_code(Code::from(code), message, certain))
}

/// The error that a call to the node at `endpoint` ended with.
pub fn from_status(status: &Status, endpoint: &str) -> Error {
    let message = status.message().to_string();
    if let Some(info) = status.get_details_error_info().filter(|info| info.domain == DOMAIN) {
        let certain = info.metadata.get(APPLIED).is_some_and(|applied| applied == "no");
        return from_reason(&info.reason, message.clone(), &info.metadata)
            .unwrap_or_else(|| from_code(status.code(), message, certain));
    }
    if let Some(refused) = connect_error(status) {
        return Error::Unavailable(format!(
            "cannot connect to {endpoint}: {refused}; is a node running there?"
        ));
    }
    if let Some(why) = not_taken_up(status) {
        return Error::Unavailable(format!("{endpoint} did not take the request up: {why}"));
    }
    match status.code() {
        // The library's own answers before a request reached the node.
        Code::OutOfRange => Error::TooLarge(message),
        // tonic's words for an answer that is no gRPC at all.
        Code::Unimplemented if message.contains("grpc-status header missing") => Error::Invalid(format!(
            "{endpoint} does not answer as a node does: is it the address that a node gives to its clients?"
        )),
        Code::Unimplemented => Error::Invalid(format!("{endpoint} does not know this call: {message}")),
        Code::Cancelled | Code::DeadlineExceeded => {
            Error::DeadlineExceeded(format!("no answer from {endpoint} in time: {}", chain(status)))
        }
        _ => Error::Unknown(format!("the connection to {endpoint} failed: {}", chain(status))),
    }
}

/// For reasons that a newer node made up: its code says enough.
fn from_code(code: Code, message: String, certain: bool) -> Error {
    match code {
        Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => Error::Invalid(message),
        Code::NotFound => Error::NotFound(message),
        Code::AlreadyExists => Error::AlreadyExists(message),
        Code::FailedPrecondition | Code::PermissionDenied | Code::Unauthenticated => {
            Error::FailedPrecondition(message)
        }
        Code::ResourceExhausted => Error::Overloaded(message),
        Code::DeadlineExceeded => Error::DeadlineExceeded(message),
        _ if certain => Error::Unavailable(message),
        _ => Error::Unknown(message),
    }
}

/// Why no connection came about, if that is what the status is about: then nothing was sent.
fn connect_error(status: &Status) -> Option<String> {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if let Some(connect) = error.downcast_ref::<tonic::ConnectError>() {
            let mut root: &dyn std::error::Error = connect;
            while let Some(next) = root.source() {
                root = next;
            }
            return Some(root.to_string());
        }
        cause = error.source();
    }
    None
}

/// Why the node certainly did not look at the request, if that is what the status is about.
fn not_taken_up(status: &Status) -> Option<String> {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if let Some(http) = error.downcast_ref::<hyper::Error>()
            && http.is_canceled()
        {
            // The connection ended while the request waited to be sent on it.
            return Some(chain(status));
        }
        if let Some(stream) = error.downcast_ref::<h2::Error>()
            && is_refusal(stream)
        {
            return Some(stream.to_string());
        }
        cause = error.source();
    }
    None
}

/// Whether the other end of an HTTP/2 connection said, by closing one stream or all above a number, that it
/// did not process the stream; or had said so before the stream was opened.
fn is_refusal(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    // Streams that a GOAWAY leaves alone end in another way.
    let beyond = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
    error.is_remote() && (refused || beyond)
}

/// The status's message and the innermost cause, which is usually the one that says something.
fn chain(status: &Status) -> String {
    let mut root: Option<&dyn std::error::Error> = std::error::Error::source(status);
    while let Some(next) = root.and_then(std::error::Error::source) {
        root = Some(next);
    }
    match root.map(ToString::to_string) {
        Some(root) if root != status.message() => format!("{}: {root}", status.message()),
        _ => status.message().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each kind.
    fn all() -> Vec<Error> {
        let text = || "machine \"x\"".to_string();
        vec![
            Error::Invalid(text()),
            Error::NotFound(text()),
            Error::AlreadyExists(text()),
            Error::TooLarge(text()),
            Error::FailedPrecondition(text()),
            Error::LimitReached(text()),
            Error::SessionExpired(text()),
            Error::NumberPassed(text()),
            Error::NumberAhead(text()),
            Error::Overloaded(text()),
            Error::Unavailable(text()),
            Error::NotLeader { leader: Some(NodeId(u64::MAX)) },
            Error::Unknown(text()),
            Error::DeadlineExceeded(text()),
            Error::Compacted { asked: Revision(3), first: Revision(9) },
            Error::Guest(text()),
            Error::Damaged(text()),
            Error::Fault(Fault::new(text())),
        ]
    }

    #[test]
    fn every_error_crosses_the_wire_as_itself() {
        for error in all() {
            let back = from_status(&to_status(&error), "here");
            assert_eq!(format!("{back:?}"), format!("{error:?}"));
            let back = from_failure(to_failure(&error));
            assert_eq!(format!("{back:?}"), format!("{error:?}"));
        }
    }

    #[test]
    fn every_status_names_a_reason_of_its_own_and_the_fate() {
        let mut reasons = std::collections::HashSet::new();
        for error in all() {
            let info = to_status(&error).get_details_error_info().unwrap();
            assert_eq!(info.domain, DOMAIN);
            assert!(matches!(info.metadata[APPLIED].as_str(), "no" | "unknown"));
            assert!(reasons.insert(info.reason));
        }
    }

    #[test]
    fn only_passing_troubles_ask_to_be_tried_again() {
        for error in all() {
            let passing =
                matches!(error, Error::Overloaded(_) | Error::Unavailable(_) | Error::NotLeader { .. });
            assert_eq!(to_status(&error).get_details_retry_info().is_some(), passing, "{error:?}");
        }
    }

    #[test]
    fn a_status_that_no_node_sent_promises_nothing() {
        let broken = Status::unavailable("error reading a body from connection");
        assert!(matches!(from_status(&broken, "here"), Error::Unknown(text) if text.contains("here")));
        let late = Status::cancelled("Timeout expired");
        assert!(matches!(from_status(&late, "here"), Error::DeadlineExceeded(_)));
    }

    #[test]
    fn a_reason_of_a_newer_node_is_read_by_its_code_and_fate() {
        let info = |applied: &str| HashMap::from([(APPLIED.to_string(), applied.to_string())]);
        let failure = |applied| Failure {
            code: Code::Unavailable as i32,
            message: "moving".into(),
            reason: "MOVING".into(),
            metadata: info(applied),
        };
        assert!(matches!(from_failure(failure("no")), Error::Unavailable(_)));
        assert!(matches!(from_failure(failure("unknown")), Error::Unknown(_)));
    }
}
