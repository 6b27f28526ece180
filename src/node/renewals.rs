//! Renewals of leases on their way into the log: those that arrive together become one operation.
//!
//! A renewal that finds none of its machine's under way goes at once. Those that come meanwhile gather, and
//! go together when it has ended; when they are many, not before [`GATHER`] has passed since it began. So a
//! lonely client waits for nothing, and tens of thousands of leases cost some operations a second.
//!
//! Promises: each request is told what became of its own leases, in its own order; one that is not told is
//! dropped with whoever was to see to it. Must never hold a lock while it waits.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message;
use tokio::sync::oneshot;

use super::Node;
use crate::error::Error;
use crate::id::GroupId;
use crate::machine::batch::{Act, Renew, Renewed};
use crate::machine::outcome::{HostCode, Outcome};
use crate::time::Clock;

/// How far apart operations begin when many leases are renewed.
const GATHER: Duration = Duration::from_millis(50);

/// So many leases that wait are few: they go as soon as the operation before them has ended.
const FEW: usize = 8;

/// Leases of one operation: bounds how long commands wait behind it.
const LEASES_MAX: usize = 2_000;

/// How often an operation of unknown fate is tried. Renewing twice does no harm.
const TRIES_MAX: u32 = 3;

/// What became of the leases of a request: the milliseconds that each lives from now on, 0 if it does not.
type Told = Result<Vec<u64>, Error>;

/// A client's leases that wait.
struct Request {
    leases: Vec<u64>,
    told: oneshot::Sender<Told>,
}

/// See the head of this file. By group; one that is here has somebody who sees to it.
#[derive(Default)]
pub struct Renewals {
    waiting: Mutex<HashMap<GroupId, Vec<Request>>>,
}

impl Renewals {
    /// Adds a request. True: nobody sees to the group, so the caller must.
    fn add(&self, group: GroupId, request: Request) -> bool {
        let mut waiting = self.waiting.lock();
        let (first, requests) = match waiting.get_mut(&group) {
            Some(requests) => (false, requests),
            None => (true, waiting.entry(group).or_default()),
        };
        requests.push(request);
        first
    }

    /// The requests that go together next; none, and nobody sees to the group any more, if none waits.
    fn take(&self, group: GroupId) -> Option<Vec<Request>> {
        let mut waiting = self.waiting.lock();
        let requests = waiting.get_mut(&group)?;
        let mut leases = 0;
        let fits = |request: &Request| {
            leases += request.leases.len();
            leases <= LEASES_MAX
        };
        // A request has no more leases than an operation, so that there is a first one if there is any.
        let count = requests.iter().map(fits).take_while(|fits| *fits).count();
        if count == 0 {
            waiting.remove(&group);
            return None;
        }
        Some(requests.drain(..count).collect())
    }

    /// How many leases wait.
    fn count(&self, group: GroupId) -> usize {
        let waiting = self.waiting.lock();
        waiting.get(&group).map_or(0, |requests| requests.iter().map(|request| request.leases.len()).sum())
    }
}

/// Whoever sees to a group. When it goes before its time, those who wait learn that nobody will tell them.
struct Duty {
    node: Node,
    group: GroupId,
    done: bool,
}

impl Drop for Duty {
    fn drop(&mut self) {
        if !self.done {
            self.node.inner.renewals.waiting.lock().remove(&self.group);
        }
    }
}

impl Node {
    /// Gives leases of a group their whole time again. For each the milliseconds that it lives from now on; 0
    /// if there is no such lease, or it is the machine's own.
    pub(super) async fn renew_gathered(&self, group: GroupId, leases: &[u64]) -> Told {
        let mut answers = Vec::new();
        for part in leases.chunks(LEASES_MAX) {
            let (told, answer) = oneshot::channel();
            if self.inner.renewals.add(group, Request { leases: part.to_vec(), told }) {
                let duty = Duty { node: self.clone(), group, done: false };
                // It ends by itself, at the latest when the node stops.
                drop(self.spawn(see_to(duty)));
            }
            answers.push(answer);
        }
        let mut ttls_ms = Vec::with_capacity(leases.len());
        for answer in answers {
            let stopped = || Error::Unavailable("the node is stopping; renew at another one".into());
            ttls_ms.extend(answer.await.map_err(|_| stopped())??);
        }
        Ok(ttls_ms)
    }

    async fn renew_together(&self, group: GroupId, leases: Vec<u64>) -> Told {
        let began_ms = self.inner.stage.clock.now().monotonic_ms;
        let act = Act::Renew(Renew { leases: leases.clone() });
        let mut tries = 0;
        let applied = loop {
            tries += 1;
            match self.propose(group, act.clone().into()).await {
                Err(Error::Unknown(why)) if tries < TRIES_MAX => {
                    tracing::debug!(%group, why, "leases are renewed again");
                }
                ended => break ended?,
            }
        };
        match applied.outcome {
            Outcome::Ok(answer) => match Renewed::decode(answer) {
                Ok(Renewed { ttls_ms }) if ttls_ms.len() == leases.len() => {
                    self.inner.renewed.note(group, began_ms, &leases, &ttls_ms);
                    Ok(ttls_ms)
                }
                _ => Err(Error::Unknown("the answer to a renewal is not one that was expected".into())),
            },
            Outcome::Host(HostCode::NotCreated) => Err(Error::NotFound("the machine was not created".into())),
            other => Err(Error::Unknown(format!("the answer to a renewal was not expected: {other:?}"))),
        }
    }
}

/// Sends what waits for a group, until nothing does.
async fn see_to(mut duty: Duty) {
    let node = duty.node.clone();
    loop {
        let clock = Clock::start();
        let Some(mut requests) = node.inner.renewals.take(duty.group) else {
            duty.done = true;
            return;
        };
        let leases = requests.iter_mut().flat_map(|request| request.leases.iter().copied()).collect();
        tell(requests, node.renew_together(duty.group, leases).await);
        if node.inner.renewals.count(duty.group) > FEW {
            tokio::time::sleep(GATHER.saturating_sub(Duration::from_nanos(clock.elapsed_ns()))).await;
        }
    }
}

/// Tells each request what became of its own leases.
fn tell(requests: Vec<Request>, answer: Told) {
    let mut from = 0;
    for Request { leases, told } in requests {
        let to = from + leases.len();
        // Whoever asked may have gone away.
        let _ = told.send(answer.as_ref().map(|ttls_ms| ttls_ms[from..to].to_vec()).map_err(Error::clone));
        from = to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId(7);

    fn request(leases: usize) -> (Request, oneshot::Receiver<Told>) {
        let (told, answer) = oneshot::channel();
        (Request { leases: vec![1; leases], told }, answer)
    }

    #[test]
    fn the_first_one_sees_to_the_others_until_none_waits() {
        let renewals = Renewals::default();
        assert!(renewals.add(GROUP, request(3).0));
        assert!(!renewals.add(GROUP, request(2).0));
        assert!(renewals.add(GroupId(8), request(1).0));
        assert_eq!(renewals.count(GROUP), 5);
        assert_eq!(renewals.take(GROUP).map(|requests| requests.len()), Some(2));
        assert!(!renewals.add(GROUP, request(1).0), "somebody still sees to it");
        assert_eq!(renewals.take(GROUP).map(|requests| requests.len()), Some(1));
        assert!(renewals.take(GROUP).is_none());
        assert!(renewals.add(GROUP, request(1).0));
    }

    #[test]
    fn an_operation_has_a_bounded_number_of_leases_and_requests_stay_whole() {
        let renewals = Renewals::default();
        for leases in [LEASES_MAX, 1, LEASES_MAX - 1, 1] {
            renewals.add(GROUP, request(leases).0);
        }
        let mut taken = Vec::new();
        while let Some(requests) = renewals.take(GROUP) {
            taken.push(requests.iter().map(|request| request.leases.len()).sum::<usize>());
        }
        assert_eq!(taken, [LEASES_MAX, LEASES_MAX, 1]);
    }

    #[tokio::test]
    async fn each_is_told_of_its_own_leases() {
        let ((one, told_one), (two, told_two)) = (request(2), request(1));
        tell(vec![one, two], Ok(vec![5, 0, 9]));
        assert_eq!(told_one.await.unwrap().unwrap(), [5, 0]);
        assert_eq!(told_two.await.unwrap().unwrap(), [9]);
        let ((one, told_one), (two, told_two)) = (request(2), request(1));
        tell(vec![one, two], Err(Error::Unavailable("no leader".into())));
        assert!(matches!(told_one.await.unwrap(), Err(Error::Unavailable(_))));
        assert!(matches!(told_two.await.unwrap(), Err(Error::Unavailable(_))));
    }
}
