//! A lease that this client keeps alive, for as long as it can.

use std::fmt;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::Client;
use crate::error::Error;
use crate::time::Clock;

/// It is renewed this many times within its time to live.
const RENEWALS: u32 = 3;

/// How long to wait before what failed is tried again, at most.
const PAUSE: Duration = Duration::from_millis(200);

/// A lease that is kept alive in the background: at whichever node answers, and again after a failure, until
/// it has ended or this is dropped. Then it ends by itself when its time is over;
/// [`revoke`](KeptLease::revoke) ends it at once.
///
/// ```no_run
/// # async fn example(client: statehouse::Client) -> Result<(), statehouse::error::Error> {
/// let lease = client.keep_lease("kv", std::time::Duration::from_secs(10), None).await?;
/// // Put what is to live as long as this program under `lease.id()`.
/// tokio::select! {
///     why = lease.ended() => eprintln!("others may think that this program is gone: {why}"),
///     // () = work() => {}
/// }
/// lease.revoke().await
/// # }
/// ```
pub struct KeptLease {
    client: Client,
    machine: String,
    id: u64,
    ended: watch::Receiver<Option<Error>>,
    keeper: AbortHandle,
}

impl Client {
    /// Grants a lease of a machine and keeps it alive. Must be called on a runtime of Tokio's.
    ///
    /// # Errors
    /// As of [`grant_lease`](Client::grant_lease).
    pub async fn keep_lease(
        &self,
        machine: &str,
        ttl: Duration,
        id: Option<u64>,
    ) -> Result<KeptLease, Error> {
        let clock = Clock::start();
        let id = self.grant_lease(machine, ttl, id).await?;
        let (sender, ended) = watch::channel(None);
        let keeper = Keeper { client: self.clone(), machine: machine.to_owned(), id, ttl, clock };
        let keeper =
            tokio::spawn(async move { sender.send_replace(Some(keeper.keep().await)) }).abort_handle();
        Ok(KeptLease { client: self.clone(), machine: machine.to_owned(), id, ended, keeper })
    }
}

impl KeptLease {
    /// The lease.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Waits until the lease has ended, or may have: `NotFound` if the machine says so; `Unavailable` if it
    /// could not be renewed for its whole time, counted by this computer's clock from the last renewal that
    /// succeeded was sent, so not after another client can see it ended. May be dropped and called again.
    pub async fn ended(&self) -> Error {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(why) => why.clone().expect("it was waited for"),
            Err(_) => Error::Unavailable(format!(
                "lease {} is not kept alive any more: the runtime that did it is gone",
                self.id
            )),
        }
    }

    /// Ends the lease now. One that has ended already is no error.
    ///
    /// # Errors
    /// What a network can do: then it ends when its time is over.
    pub async fn revoke(self) -> Result<(), Error> {
        self.keeper.abort();
        match self.client.revoke_lease(&self.machine, self.id).await {
            Err(Error::NotFound(_)) => Ok(()),
            ended => ended,
        }
    }
}

impl Drop for KeptLease {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl fmt::Debug for KeptLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let KeptLease { machine, id, .. } = self;
        f.debug_struct("KeptLease").field("machine", machine).field("id", id).finish_non_exhaustive()
    }
}

/// Who renews.
struct Keeper {
    client: Client,
    machine: String,
    id: u64,
    ttl: Duration,
    /// Started before the lease was granted: the time of a lease counts from when its renewal was sent.
    clock: Clock,
}

impl Keeper {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.clock.elapsed_ns())
    }

    /// Renews for as long as it helps. Why it does not any more.
    async fn keep(self) -> Error {
        let interval = self.ttl / RENEWALS;
        // Until when nobody can think that it has ended; and when it is renewed next.
        let (mut safe_until, mut renew_at) = (self.ttl, interval);
        loop {
            tokio::time::sleep(renew_at.min(safe_until).saturating_sub(self.now())).await;
            let sent = self.now();
            if sent >= safe_until {
                return Error::Unavailable(format!(
                    "lease {} could not be kept alive for {:?}, its time to live",
                    self.id, self.ttl
                ));
            }
            // A node that hangs must leave time for another.
            let client = self.client.clone().with_timeout(interval);
            let lease = [self.id];
            let renewing = client.renew_leases(&self.machine, &lease);
            match tokio::time::timeout(safe_until - sent, renewing).await {
                Ok(Ok(lives)) if lives == [None] => {
                    return Error::NotFound(format!("lease {} has ended", self.id));
                }
                Ok(Ok(_)) => (safe_until, renew_at) = (sent + self.ttl, sent + interval),
                Ok(Err(why)) => {
                    tracing::warn!(lease = self.id, %why, "a lease could not be kept alive: again");
                    renew_at = self.now() + PAUSE.min(interval / 2);
                }
                Err(_) => {}
            }
        }
    }
}
