//! When a request is sent again, and what is told of one that never was answered.

use std::time::Duration;

use crate::error::Error;
use crate::time::{self, Clock};

/// How long the first sending may take before another node is tried; each further one may take twice as long,
/// so that a cluster that is slow is not given more and more to do.
const FIRST_TRY: Duration = Duration::from_secs(2);
const TRY_MAX: Duration = Duration::from_secs(30);
/// How long to wait after the first failure; twice as long after each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What an error says of the sending that it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It was not done, and may be later or elsewhere.
    NotDone,
    /// It may have been done.
    Unknown,
    /// Sending it again would end in the same way.
    Final,
}

fn fate(error: &Error) -> Fate {
    match error {
        Error::Unavailable(_) | Error::NotLeader { .. } | Error::Overloaded(_) | Error::NumberAhead(_) => {
            Fate::NotDone
        }
        Error::Unknown(_) | Error::DeadlineExceeded(_) | Error::Fault(_) | Error::Damaged(_) => Fate::Unknown,
        _ => Fate::Final,
    }
}

/// The sendings of one request, until one is answered or the time is over.
pub struct Tries {
    clock: Clock,
    patience: Duration,
    failed: u32,
    /// Why an earlier sending may have been done.
    doubt: Option<Error>,
}

impl Tries {
    /// Of a request that may take so long.
    pub fn within(patience: Duration) -> Tries {
        Tries { clock: Clock::start(), patience, failed: 0, doubt: None }
    }

    /// What is left of its time.
    pub fn left(&self) -> Duration {
        self.patience.saturating_sub(Duration::from_nanos(self.clock.elapsed_ns()))
    }

    /// How long the next sending may take.
    pub fn next(&self) -> Duration {
        doubled(FIRST_TRY, self.failed, TRY_MAX).min(self.left())
    }

    /// How often it was sent in vain.
    pub fn failed(&self) -> u32 {
        self.failed
    }

    /// Waits until it is time to send again, after a sending that ended with `why`.
    ///
    /// # Errors
    /// What the caller is told, if it is not sent again: `what` is what was asked for.
    pub async fn again(&mut self, what: &str, why: Error) -> Result<(), Error> {
        match fate(&why) {
            Fate::Final => return Err(self.told(what, why)),
            Fate::Unknown => self.doubt = Some(why.clone()),
            Fate::NotDone => {}
        }
        let pause = doubled(FIRST_PAUSE, self.failed, PAUSE_MAX);
        self.failed += 1;
        // Half of it by chance, so that clients that failed together do not come back together.
        let half_ms = pause.as_millis() as u64 / 2;
        let pause = Duration::from_millis(half_ms + time::seed() % (half_ms + 1));
        if pause >= self.left() {
            return Err(self.late(what, &why));
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// The time is over while a sending is under way.
    pub fn late_under_way(&self, what: &str) -> Error {
        let patience_ms = self.patience.as_millis();
        Error::DeadlineExceeded(format!(
            "{what} had no answer within {patience_ms} ms: whether it was done is unknown"
        ))
    }

    fn late(&self, what: &str, why: &Error) -> Error {
        let patience_ms = self.patience.as_millis();
        match &self.doubt {
            None => Error::Unavailable(format!("{what} was not done within {patience_ms} ms: {why}")),
            Some(doubt) => Error::DeadlineExceeded(format!(
                "{what} had no answer within {patience_ms} ms: whether it was done is unknown: {doubt}"
            )),
        }
    }

    /// What a final error says is only about the last sending.
    fn told(&self, what: &str, why: Error) -> Error {
        match (&self.doubt, why) {
            (Some(doubt), why) if !speaks_for_all(&why) => Error::Unknown(format!(
                "whether {what} was done is unknown: {doubt}; it was sent again, and that ended so: {why}"
            )),
            (_, why) => why,
        }
    }
}

/// Whether an error is about all sendings of a command, not only about the last.
fn speaks_for_all(error: &Error) -> bool {
    matches!(error, Error::SessionExpired(_) | Error::NumberPassed(_))
}

fn doubled(first: Duration, times: u32, max: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(times)).min(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unknown() -> Error {
        Error::Unknown("the connection broke".into())
    }

    #[tokio::test]
    async fn what_was_not_done_or_may_have_been_is_sent_again_and_nothing_else() {
        let again = [unknown(), Error::Unavailable("x".into()), Error::NotLeader { leader: None }];
        let mut tries = Tries::within(Duration::from_secs(60));
        for why in again {
            assert!(tries.again("it", why).await.is_ok());
        }
        assert_eq!(tries.failed(), 3);
        for why in [Error::TooLarge("x".into()), Error::NotFound("x".into())] {
            let ended = Tries::within(Duration::from_secs(60)).again("it", why.clone()).await.unwrap_err();
            assert_eq!(format!("{ended:?}"), format!("{why:?}"));
        }
    }

    #[tokio::test]
    async fn a_later_refusal_does_not_say_that_an_earlier_sending_was_not_done() {
        let mut tries = Tries::within(Duration::from_secs(60));
        tries.again("it", unknown()).await.unwrap();
        let ended = tries.again("it", Error::NotFound("no machine".into())).await.unwrap_err();
        assert!(matches!(&ended, Error::Unknown(text) if text.contains("no machine")), "{ended:?}");
        let expired = tries.again("it", Error::SessionExpired("ended".into())).await.unwrap_err();
        assert!(matches!(expired, Error::SessionExpired(_)));
    }

    #[tokio::test]
    async fn at_the_end_of_its_time_the_error_says_whether_the_fate_is_known() {
        let late = async |whys: Vec<Error>| {
            let mut tries = Tries::within(Duration::from_millis(20));
            for why in whys.iter().cycle() {
                if let Err(ended) = tries.again("it", why.clone()).await {
                    return ended;
                }
            }
            unreachable!("the time is over at some point")
        };
        let not_done = late(vec![Error::Unavailable("no leader".into())]).await;
        assert!(matches!(&not_done, Error::Unavailable(text) if text.contains("not done")), "{not_done:?}");
        let open = late(vec![unknown(), Error::Unavailable("no leader".into())]).await;
        assert!(matches!(&open, Error::DeadlineExceeded(text) if text.contains("unknown")), "{open:?}");
    }

    #[test]
    fn waits_grow_up_to_their_bound() {
        assert_eq!(doubled(FIRST_PAUSE, 0, PAUSE_MAX), FIRST_PAUSE);
        assert_eq!(doubled(FIRST_PAUSE, 3, PAUSE_MAX), FIRST_PAUSE * 8);
        assert_eq!(doubled(FIRST_PAUSE, u32::MAX, PAUSE_MAX), PAUSE_MAX);
    }
}
