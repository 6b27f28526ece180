//! etcd's codes and messages: clients compare them.

use tonic::{Code, Status};

use super::methods::Form;
use crate::error::Error;
use crate::machine::outcome::Refusal;

/// What etcd says in a case.
#[derive(Clone, Copy)]
pub struct Said(Code, &'static str);

impl Said {
    /// The words.
    pub fn text(self) -> &'static str {
        self.1
    }
}

impl From<Said> for Status {
    fn from(Said(code, text): Said) -> Status {
        Status::new(code, text)
    }
}

pub const REQUEST_TOO_LARGE: Said = Said(Code::InvalidArgument, "etcdserver: request is too large");
pub const COMPACTED: Said = Said(Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted");
pub const TOO_MANY_REQUESTS: Said = Said(Code::ResourceExhausted, "etcdserver: too many requests");
pub const NO_LEADER: Said = Said(Code::Unavailable, "etcdserver: no leader");
pub const NOT_LEADER: Said = Said(Code::FailedPrecondition, "etcdserver: not leader");
pub const BAD_TRANSFEREE: Said = Said(Code::FailedPrecondition, "etcdserver: bad leader transferee");
pub const TIMED_OUT: Said = Said(Code::Unavailable, "etcdserver: request timed out");
/// Of a change that found no leader: etcd passes on that its own patience was at an end.
pub const NOT_PROPOSED: Said = Said(Code::DeadlineExceeded, "context deadline exceeded");
pub const LEADER_FAILED: Said =
    Said(Code::Unavailable, "etcdserver: request timed out, possibly due to previous leader failure");
pub const STOPPED: Said = Said(Code::Unavailable, "etcdserver: server stopped");
pub const LEASE_NOT_FOUND: Said = Said(Code::NotFound, "etcdserver: requested lease not found");
pub const LEASE_EXISTS: Said = Said(Code::FailedPrecondition, "etcdserver: lease already exists");
pub const TTL_TOO_LARGE: Said = Said(Code::OutOfRange, "etcdserver: too large lease TTL");
pub const MEMBER_NOT_FOUND: Said = Said(Code::NotFound, "etcdserver: member not found");
pub const MEMBER_BAD_URLS: Said = Said(Code::InvalidArgument, "etcdserver: given member URLs are invalid");
pub const MEMBER_NOT_LEARNER: Said =
    Said(Code::FailedPrecondition, "etcdserver: can only promote a learner member");
pub const ROOT_USER_NOT_THERE: Said = Said(Code::FailedPrecondition, "etcdserver: root user does not exist");
pub const USER_EMPTY: Said = Said(Code::InvalidArgument, "etcdserver: user name is empty");
pub const USER_NOT_FOUND: Said = Said(Code::FailedPrecondition, "etcdserver: user name not found");
pub const ROLE_EMPTY: Said = Said(Code::InvalidArgument, "etcdserver: role name is empty");
pub const ROLE_NOT_FOUND: Said = Said(Code::FailedPrecondition, "etcdserver: role name not found");
pub const AUTH_NOT_ENABLED: Said =
    Said(Code::FailedPrecondition, "etcdserver: authentication is not enabled");
pub const PERMISSION_NOT_GIVEN: Said = Said(Code::InvalidArgument, "etcdserver: permission not given");
pub const INVALID_AUTH_MANAGEMENT: Said = Said(Code::InvalidArgument, "etcdserver: invalid auth management");
pub const NO_DOWNGRADE: Said = Said(Code::FailedPrecondition, "etcdserver: no inflight downgrade job");

/// Why a watch does not begin, in etcd's words; they come in an answer, not as a status.
pub mod watch {
    /// Its keys are none.
    pub const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
    /// Its id is that of another.
    pub const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
}

/// What a client of etcd is told of an error. What etcd has no words for keeps ours.
pub fn of(error: &Error) -> Status {
    match error {
        Error::TooLarge(_) => REQUEST_TOO_LARGE.into(),
        Error::Overloaded(_) => TOO_MANY_REQUESTS.into(),
        Error::NotLeader { .. } => NO_LEADER.into(),
        Error::DeadlineExceeded(_) => TIMED_OUT.into(),
        // Its clients know that such a request may have been applied.
        Error::Unknown(_) => LEADER_FAILED.into(),
        Error::Fault(_) => STOPPED.into(),
        Error::Compacted { .. } => COMPACTED.into(),
        Error::Unavailable(why) => Status::unavailable(ours(why)),
        Error::Invalid(why) => Status::invalid_argument(ours(why)),
        Error::NotFound(why) | Error::FailedPrecondition(why) | Error::AlreadyExists(why) => {
            Status::failed_precondition(ours(why))
        }
        Error::LimitReached(why) => Status::resource_exhausted(ours(why)),
        other => Status::internal(ours(other)),
    }
}

/// A refusal of the machine, whose codes are those of gRPC. Bytes that it cannot read etcd never sees: its
/// gRPC library refuses them.
pub fn refused(refusal: &Refusal) -> Status {
    let unread = statehouse_kv::Refusal::malformed("");
    if refusal.code == unread.code
        && let Some(why) = refusal.message.strip_prefix(&*unread.message)
    {
        return Form::Single.unreadable(why);
    }
    let code = i32::try_from(refusal.code).map_or(Code::Unknown, Code::from_i32);
    Status::new(code, refusal.message.clone())
}

/// What the services for locks and elections say of an error. etcd's own use a client inside the server,
/// whose errors they pass on without their codes: what is refused is `Unknown` there. What a client may try
/// again stays what it is.
pub fn of_client_inside(status: Status) -> Status {
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::ResourceExhausted => Status::unknown(status.message()),
        _ => status,
    }
}

/// Words of ours, told apart from etcd's.
pub fn ours(why: impl std::fmt::Display) -> String {
    format!("statehouse: {why}")
}
