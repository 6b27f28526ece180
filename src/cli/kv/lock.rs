//! `statehouse kv lock`: a command that runs while it holds a lock, with a fencing token.
//!
//! Who wants the lock writes a key `NAME/LEASE` with a lease of its own. The one whose key was created first
//! has the lock; each of the others waits for the key before its own to go, so they take it in the order in
//! which they came. (A lock whose name begins with another's and a slash has keys below the other's: they are
//! told from its own by their length.) Having it, the holder writes its key once more: the revision of that
//! write is the token. Tokens only grow, and the key carries the token as its mod revision for exactly as
//! long as the lock is held, so a transaction that compares the two does nothing for who has lost it.
//!
//! A lock is lost when it could not be kept alive for its time. The command is told by a signal: at the
//! latest when, by this computer's clock, that time has passed since the last renewal was sent that
//! succeeded, and so not after somebody else can have it. A process that is paused is told late: that is what
//! the token is for.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, Signal};
use statehouse_kv::Call;
use statehouse_kv::messages::{
    Compare, CompareResult, CompareTarget, PutRequest, RangeRequest, RangeResponse, Request, RequestOp,
    TargetUnion, TxnRequest,
};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::{revision_of, span};
use crate::cli::ExitCode;
use crate::cli::{Global, duration, output};
use crate::client::{Client, KeptLease};
use crate::error::Error;
use crate::id::Revision;
use crate::machine::outcome::Outcome;
use crate::node::request::{Consistency, KeySpan, Selection, WatchSpec, Watched};

/// Between two looks at the queue, while it cannot be watched.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

pub const HELP: &str = "\
The command finds in its environment STATEHOUSE_LOCK_KEY, STATEHOUSE_LOCK_TOKEN and STATEHOUSE_LOCK_LEASE.
Tokens grow from holder to holder, so whoever keeps the highest that it has seen can turn away a holder that
has lost the lock without knowing it; the kv machine does so in a transaction that compares the two:
  {\"compare\": [{\"key\": \"$STATEHOUSE_LOCK_KEY\", \"target\": \"mod_revision\", \"is\": \"=\",
               \"value\": $STATEHOUSE_LOCK_TOKEN}],
   \"success\": [{\"put\": {\"key\": \"result\", \"value\": \"mine\"}}]}

Ends as the command ends, or with 1 if the lock was lost; then the command has got the signal TERM.

Examples:
  statehouse kv lock nightly -- ./report.sh
  statehouse kv lock migration --ttl 30s --wait 5m -- ./migrate --all";

#[derive(Debug, Args)]
pub struct Lock {
    /// The lock; any bytes
    name: OsString,
    /// After how long without a sign of life from here somebody else may have it: 500ms, 10s, 5m
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration::lock_ttl_ms)]
    ttl: u64,
    /// Give up if it cannot be had within this time [default: never]
    #[arg(long, value_name = "TIME", value_parser = duration::ttl_ms)]
    wait: Option<u64>,
    /// What to run while it is held
    #[arg(value_name = "COMMAND", required = true, last = true)]
    command: Vec<OsString>,
}

impl Lock {
    pub async fn run(self, global: &Global, machine: &str) -> anyhow::Result<ExitCode> {
        let ttl = Duration::from_millis(self.ttl);
        let grip = Grip::new(global.client()?, machine, ttl).await?;
        let held = self.take_and_run(&grip).await;
        grip.let_go().await;
        held
    }

    async fn take_and_run(&self, grip: &Grip) -> anyhow::Result<ExitCode> {
        let mut stop = Stop::new()?;
        let patience = self.wait.map(Duration::from_millis);
        let taken = tokio::select! {
            taken = grip.take(&self.name) => Some(taken?),
            () = no_longer_than(patience) => None,
            signal = stop.asked() => return Ok(ExitCode::from(128 + signal.as_raw() as u8)),
        };
        let Some(taken) = taken else {
            let name = output::printable(self.name.as_bytes());
            anyhow::bail!(
                "the lock \"{name}\" was not to be had within {} ms",
                self.wait.unwrap_or_default()
            );
        };
        let child = self.start(&taken, grip.lease.id())?;
        watch_over(child, grip, &mut stop).await
    }

    fn start(&self, taken: &Taken, lease: u64) -> anyhow::Result<Child> {
        let (program, arguments) = self.command.split_first().expect("the command line requires one");
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("STATEHOUSE_LOCK_KEY", OsString::from_vec(taken.key.clone()))
            .env("STATEHOUSE_LOCK_TOKEN", taken.token.to_string())
            .env("STATEHOUSE_LOCK_LEASE", lease.to_string());
        let shown = output::printable(program.as_bytes());
        command.spawn().map_err(|e| anyhow::anyhow!("cannot run {shown}: {e}"))
    }
}

async fn no_longer_than(patience: Option<Duration>) {
    match patience {
        Some(patience) => tokio::time::sleep(patience).await,
        None => std::future::pending().await,
    }
}

/// A lock that is held.
struct Taken {
    key: Vec<u8>,
    token: i64,
}

/// The place of one that wants the lock, or has it.
struct Grip {
    client: Client,
    machine: String,
    lease: KeptLease,
}

impl Grip {
    async fn new(client: Client, machine: &str, ttl: Duration) -> anyhow::Result<Grip> {
        let lease = client.keep_lease(machine, ttl, None).await?;
        Ok(Grip { client, machine: machine.to_owned(), lease })
    }

    /// Waits for the lock's turn.
    async fn take(&self, name: &OsString) -> anyhow::Result<Taken> {
        let prefix = [name.as_bytes(), b"/"].concat();
        let lease = self.lease.id();
        let key = [prefix.as_slice(), format!("{lease:016x}").as_bytes()].concat();
        let queue = Queue { client: self.client.clone(), machine: self.machine.clone(), prefix, key };
        tokio::select! {
            taken = queue.take(lease as i64) => taken,
            why = self.lease.ended() => Err(anyhow::anyhow!("the place in the queue was lost: {why}")),
        }
    }

    /// Ends the lease, so that the next one need not wait for its time to pass.
    async fn let_go(self) {
        if let Err(why) = self.lease.revoke().await {
            tracing::warn!(%why, "the lock is free only when its time is over");
        }
    }
}

/// Those who want the lock, by the revisions that created their keys.
struct Queue {
    client: Client,
    machine: String,
    prefix: Vec<u8>,
    key: Vec<u8>,
}

impl Queue {
    async fn take(&self, lease: i64) -> anyhow::Result<Taken> {
        // At once if nobody has it, or wants it.
        let nobody = self.compare(CompareTarget::Create, TargetUnion::CreateRevision(0), true);
        let (free, revision) = self.put(nobody, "held", lease, Some("waits")).await?;
        if free {
            return Ok(Taken { key: self.key.clone(), token: revision });
        }
        let place = loop {
            match self.place().await? {
                Place { own, before: None, .. } => break own,
                Place { before: Some(before), seen, .. } => self.wait_gone(before, seen).await,
            }
        };
        let still = self.compare(CompareTarget::Create, TargetUnion::CreateRevision(place), false);
        match self.put(still, "held", lease, None).await? {
            (true, token) => Ok(Taken { key: self.key.clone(), token }),
            (false, _) => Err(lost_place()),
        }
    }

    fn compare(&self, target: CompareTarget, with: TargetUnion, of_all: bool) -> Compare {
        let (key, range_end) =
            if of_all { span(self.prefix.clone(), true) } else { (self.key.clone(), vec![]) };
        let result = CompareResult::Equal as i32;
        Compare { result, target: target as i32, key, target_union: Some(with), range_end }
    }

    /// Writes the key with a value if the comparison holds, else, if there is one, with another. Whether it
    /// held, and the revision. Done twice it is as if it was done once: the key is this process's own.
    async fn put(
        &self,
        compare: Compare,
        value: &str,
        lease: i64,
        otherwise: Option<&str>,
    ) -> anyhow::Result<(bool, i64)> {
        let step = |value: &str| {
            let put = PutRequest { key: self.key.clone(), value: value.into(), lease, ..Default::default() };
            RequestOp { request: Some(Request::RequestPut(put)) }
        };
        let request = TxnRequest {
            compare: vec![compare],
            success: vec![step(value)],
            failure: otherwise.map(step).into_iter().collect(),
        };
        let outcome = loop {
            match self.client.apply(&self.machine, request.to_envelope()).await {
                Ok(applied) => break applied.outcome,
                Err(why) => self.again(why).await?,
            }
        };
        let answer = TxnRequest::answer(output::answer(&outcome)?)?;
        Ok((answer.succeeded, revision_of(answer.header.as_ref())))
    }

    /// Where one stands.
    async fn place(&self) -> anyhow::Result<Place> {
        let found = self.read().await?;
        let seen = revision_of(found.header.as_ref());
        let own = found.kvs.iter().find(|pair| pair.key == self.key).ok_or_else(lost_place)?.create_revision;
        // Deeper keys belong to locks whose names begin with this one's.
        let of_lock = found.kvs.into_iter().filter(|pair| pair.key.len() == self.key.len());
        let earlier = of_lock.filter(|pair| pair.create_revision < own);
        let before = earlier.max_by_key(|pair| pair.create_revision).map(|pair| pair.key);
        Ok(Place { own, before, seen })
    }

    /// Waits until a key that was there at a revision is deleted; or for a moment, if that cannot be watched.
    /// Whoever waits looks again in either case.
    async fn wait_gone(&self, key: Vec<u8>, seen: i64) {
        if let Err(why) = self.watch_gone(key, seen).await {
            tracing::debug!(%why, "the queue is looked at again in a moment");
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn watch_gone(&self, key: Vec<u8>, seen: i64) -> Result<(), Error> {
        let selection = Selection::new(KeySpan::key(key)?, false, true)?;
        let from = Some(Revision(seen.cast_unsigned()).next());
        let spec = WatchSpec { selection, from, progress: false, previous: false };
        let mut watch = self.client.watch(&self.machine, spec).await?;
        while !matches!(watch.next().await?, Watched::Events(_)) {}
        Ok(())
    }

    /// The keys of those who want the lock, and deeper ones.
    async fn read(&self) -> anyhow::Result<RangeResponse> {
        let (key, range_end) = span(self.prefix.clone(), true);
        let request = RangeRequest { key, range_end, keys_only: true, ..Default::default() };
        let answered = loop {
            let query = self.client.query(&self.machine, request.to_envelope(), Consistency::Linearizable);
            match query.await {
                Ok(answered) => break answered,
                Err(why) => self.again(why).await?,
            }
        };
        let outcome = Outcome::from(answered.outcome);
        Ok(RangeRequest::answer(output::answer(&outcome)?)?)
    }

    /// Waits before what failed for a while is tried again. How long that may go on is for who keeps the
    /// lease alive to say.
    async fn again(&self, why: Error) -> anyhow::Result<()> {
        let passes = matches!(
            why,
            Error::Unavailable(_)
                | Error::NotLeader { .. }
                | Error::Overloaded(_)
                | Error::Unknown(_)
                | Error::DeadlineExceeded(_)
        );
        if !passes {
            return Err(why.into());
        }
        tracing::warn!(%why, "the lock could not be asked for: again");
        tokio::time::sleep(LOOK_INTERVAL).await;
        Ok(())
    }
}

/// A place in the queue.
struct Place {
    /// The revision that created one's own key.
    own: i64,
    /// The key of who came last before; none: it is one's own turn.
    before: Option<Vec<u8>>,
    /// The revision as of which this is so.
    seen: i64,
}

fn lost_place() -> anyhow::Error {
    anyhow::anyhow!("the place in the queue was lost: it was not kept alive in time; try again")
}

/// The signals that ask this process to end.
struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Stop {
    fn new() -> std::io::Result<Stop> {
        Ok(Stop { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn asked(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.terminate.recv() => Signal::TERM,
        }
    }
}

/// Waits for the command's end, keeping the lock meanwhile; a signal to end is passed on.
async fn watch_over(mut child: Child, grip: &Grip, stop: &mut Stop) -> anyhow::Result<ExitCode> {
    let lost = loop {
        tokio::select! {
            ended = child.wait() => return Ok(code_of(ended?)),
            why = grip.lease.ended() => break why,
            // A terminal sends the first to the command as well.
            signal = stop.asked() => if signal == Signal::TERM { tell(&child, signal) },
        }
    };
    output::tell(format_args!("the lock was lost: {lost}; the command is told"));
    tell(&child, Signal::TERM);
    loop {
        tokio::select! {
            ended = child.wait() => { ended?; break }
            signal = stop.asked() => tell(&child, signal),
        }
    }
    Err(anyhow::anyhow!("the lock was lost while the command ran: {lost}"))
}

/// Sends the command a signal.
fn tell(child: &Child, signal: Signal) {
    let Some(id) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) else { return };
    // It was not waited for yet, so the id is still its own.
    if let Err(why) = rustix::process::kill_process(id, signal) {
        tracing::warn!(%why, "the command could not be told");
    }
}

/// What a shell would end with.
fn code_of(status: ExitStatus) -> ExitCode {
    match (status.code(), status.signal()) {
        (Some(code), _) => ExitCode::from(code as u8),
        (None, signal) => ExitCode::from(128u8.saturating_add(signal.unwrap_or_default() as u8)),
    }
}
