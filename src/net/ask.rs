//! Requests to another node's host, and their answers, side by side on the link in any order.
//!
//! Promises: each request ends, with an answer or with what is known of its fate; it is [`AskError::NotSent`]
//! only if no byte of it can have reached the other. What is under way is bounded in number and bytes, here
//! by those who ask and there by those who answer: over the bound a request is refused and nothing waits, so
//! that Raft's messages, which share the connection, are never held back.

use std::collections::HashMap;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Not done: no byte of it can have reached the other node.
    #[error("the request was not sent: {0}")]
    NotSent(String),
    /// Not done: it arrived, and the other node did not take it up.
    #[error("the other node refused the request: {0}")]
    Refused(String),
    /// Perhaps done: it was sent, and no answer came.
    #[error("the request was sent and its fate is unknown: {0}")]
    Unknown(String),
}

impl AskError {
    /// Whether the other node may have done what was asked.
    pub fn perhaps_done(&self) -> bool {
        matches!(self, AskError::Unknown(_))
    }
}

/// A request on the wire.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AskFrame {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) request: Bytes,
}

/// An answer on the wire.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AnswerFrame {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(oneof = "Answer", tags = "2, 3, 4")]
    pub(super) answer: Option<Answer>,
}

/// What became of a request.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Answer {
    /// The host's answer.
    #[prost(bytes = "bytes", tag = "2")]
    Given(Bytes),
    /// Not taken up, and why.
    #[prost(string, tag = "3")]
    Refused(String),
    /// Taken up, but there is no answer, and why.
    #[prost(string, tag = "4")]
    Lost(String),
}

/// Bytes of an ask's or answer's frame besides its own, at most.
pub(super) const ENVELOPE_BYTES: usize = 32;

/// How much may be under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Requests.
    pub(super) count_max: usize,
    /// Their bytes.
    pub(super) bytes_max: usize,
}

impl Bounds {
    /// Whether one more request of `bytes` may join `count` with `held`; else the reason.
    pub(super) fn admit(&self, count: usize, held: usize, bytes: usize) -> Result<(), String> {
        if count >= self.count_max {
            return Err(format!("{count} requests are under way, which is the limit: try again later"));
        }
        // One alone may be as large as a frame.
        if held > 0 && held + bytes > self.bytes_max {
            return Err(format!(
                "{held} bytes of requests are under way, {bytes} more are over the limit of {}: try again \
                 later",
                self.bytes_max
            ));
        }
        Ok(())
    }
}

type Asker = oneshot::Sender<Result<Bytes, AskError>>;

/// The requests that wait for an answer on one connection.
pub(super) struct Asks {
    bounds: Bounds,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    last_id: u64,
    askers: HashMap<u64, (Asker, usize)>,
    bytes: usize,
}

impl Asks {
    /// Nothing waits.
    pub(super) fn new(bounds: Bounds) -> Asks {
        Asks { bounds, waiting: Mutex::default() }
    }

    /// Takes note of a request before it is queued. The receiver fails only if the request was forgotten.
    pub(super) fn begin(
        &self,
        bytes: usize,
    ) -> Result<(u64, oneshot::Receiver<Result<Bytes, AskError>>), AskError> {
        let mut waiting = self.waiting.lock();
        self.bounds.admit(waiting.askers.len(), waiting.bytes, bytes).map_err(AskError::NotSent)?;
        let (asker, answer) = oneshot::channel();
        waiting.last_id += 1;
        let id = waiting.last_id;
        waiting.askers.insert(id, (asker, bytes));
        waiting.bytes += bytes;
        Ok((id, answer))
    }

    /// Tells the asker. An answer that nobody waits for any more is dropped.
    pub(super) fn finish(&self, id: u64, result: Result<Bytes, AskError>) {
        if let Some(asker) = self.remove(id) {
            // The asker may have gone meanwhile.
            let _ = asker.send(result);
        }
    }

    /// Nobody waits for the answer any more.
    pub(super) fn forget(&self, id: u64) {
        self.remove(id);
    }

    fn remove(&self, id: u64) -> Option<Asker> {
        let mut waiting = self.waiting.lock();
        let (asker, bytes) = waiting.askers.remove(&id)?;
        waiting.bytes -= bytes;
        Some(asker)
    }

    /// An answer arrived.
    pub(super) fn answered(&self, frame: AnswerFrame) {
        let result = match frame.answer {
            Some(Answer::Given(bytes)) => Ok(bytes),
            Some(Answer::Refused(why)) => Err(AskError::Refused(why)),
            Some(Answer::Lost(why)) => Err(AskError::Unknown(why)),
            None => Err(AskError::Unknown("the answer is of a kind unknown here".into())),
        };
        self.finish(frame.id, result);
    }

    /// The connection ended: those that still wait are told this.
    pub(super) fn give_up(&self, why: impl Fn() -> AskError) {
        let askers = {
            let mut waiting = self.waiting.lock();
            waiting.bytes = 0;
            std::mem::take(&mut waiting.askers)
        };
        for (asker, _) in askers.into_values() {
            // The asker may have gone meanwhile.
            let _ = asker.send(Err(why()));
        }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.lock().askers.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks() -> Asks {
        Asks::new(Bounds { count_max: 2, bytes_max: 100 })
    }

    #[test]
    fn requests_are_bounded_in_number_and_bytes_and_free_their_room_when_they_end() {
        let asks = asks();
        let (first, mut answer) = asks.begin(500).unwrap();
        let told = asks.begin(1).unwrap_err().to_string();
        assert!(told.contains("500 bytes") && told.contains("limit of 100"), "{told}");
        asks.finish(first, Ok("yes".into()));
        assert_eq!(answer.try_recv().unwrap(), Ok("yes".into()));
        let _second = asks.begin(50).unwrap();
        let (third, _) = asks.begin(50).unwrap();
        let told = asks.begin(0).unwrap_err();
        assert!(!told.perhaps_done() && told.to_string().contains("2 requests"), "{told}");
        asks.forget(third);
        asks.begin(50).unwrap();
    }

    #[test]
    fn answers_find_their_askers_and_the_rest_learn_that_they_will_not_know() {
        let asks = asks();
        let (first, mut first_answer) = asks.begin(1).unwrap();
        let (_, mut second_answer) = asks.begin(1).unwrap();
        let refused = |id| AnswerFrame { id, answer: Some(Answer::Refused("full".into())) };
        asks.answered(refused(first));
        asks.answered(refused(99));
        assert_eq!(first_answer.try_recv().unwrap(), Err(AskError::Refused("full".into())));
        asks.give_up(|| AskError::Unknown("cut".into()));
        assert_eq!(second_answer.try_recv().unwrap(), Err(AskError::Unknown("cut".into())));
        assert_eq!(asks.len(), 0);
    }
}
