//! A job queue: a taken job is invisible for a time and comes back if nobody completes it; it is completed
//! once.
//!
//! Commands are JSON: `{"add": {"body": "..."}}` answers the job's number; `{"take": {"visible_after_ms":
//! 30000}}` answers the oldest job that waits with a `receipt`, or `null`; `{"complete": {"job": 1,
//! "receipt": 7}}` ends it; `{"extend": {...,"visible_after_ms": 30000}}` asks for more time, with a new
//! receipt. The query `{}` counts.
//!
//! The receipt is the lease that hides the job. When the lease ends, the job waits again, at its old place,
//! and the receipt is good for nothing: of two workers that both believe to have the job, one completes it.

use serde::{Deserialize, Serialize};
use statehouse_guest::json::{Json, answer, read};
use statehouse_guest::{Answer, Change, LeaseEnd, Refusal, Store, Stored, Table, View};

const NOT_UNDERSTOOD: u32 = 1;
const NOT_YOURS: u32 = 2;
const TOO_MANY: u32 = 3;

/// The longest body.
const BODY_BYTES_MAX: usize = 1 << 20;
const HIDDEN_MS_MAX: u64 = 86_400_000;

/// All jobs that are not complete.
const JOBS: Table<u64, Json<Job>> = Table::new(b"job/");
/// The numbers of those that wait, in order.
const WAITING: Table<u64, ()> = Table::new(b"waiting/");
/// The last job's number, and how many there are.
const COUNTS: Table<(), Json<Counts>> = Table::new(b"counts");

#[derive(Serialize, Deserialize)]
struct Job {
    body: String,
    /// How often it was taken.
    attempts: u32,
    /// The lease that hides it; none while it waits.
    receipt: Option<u64>,
}

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Counts {
    added: u64,
    completed: u64,
    waiting: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Command {
    Add { body: String },
    Take { visible_after_ms: u64 },
    Complete { job: u64, receipt: u64 },
    Extend { job: u64, receipt: u64, visible_after_ms: u64 },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Query {}

#[derive(Serialize)]
struct Taken<'a> {
    job: u64,
    receipt: u64,
    attempts: u32,
    body: &'a str,
}

struct Queue;

impl Stored for Queue {
    fn command(change: &Change, store: &mut Store, command: &[u8]) -> Answer {
        match read(command, NOT_UNDERSTOOD)? {
            Command::Add { body } => add(change, store, body),
            Command::Take { visible_after_ms } => take(change, store, visible_after_ms),
            Command::Complete { job, receipt } => complete(change, store, job, receipt),
            Command::Extend { job, receipt, visible_after_ms } => {
                check_time(visible_after_ms)?;
                let taken = taken(store, job, receipt)?;
                // The lease's end must not be told: it is not the job's.
                let _ = change.revoke(receipt);
                hide(change, store, job, taken, visible_after_ms)
            }
        }
    }

    fn lease_ended(change: &Change, store: &mut Store, ended: &LeaseEnd) -> Answer {
        for number in ended.keys.iter().filter_map(|key| JOBS.parse(key)) {
            let Some(Json(mut job)) = JOBS.get(store, &number) else { continue };
            if job.receipt == Some(ended.lease) {
                job.receipt = None;
                JOBS.set(store, &number, &Json(job));
                wait(change, store, number);
            }
        }
        Ok(Vec::new())
    }

    fn query(_: &View, store: &Store, request: &[u8]) -> Answer {
        let Query {} = read(request, NOT_UNDERSTOOD)?;
        answer(&counts(store))
    }
}

fn add(change: &Change, store: &mut Store, body: String) -> Answer {
    if body.len() > BODY_BYTES_MAX {
        let told = format!("a body has {} bytes, at most {BODY_BYTES_MAX} are allowed", body.len());
        return Err(Refusal::new(NOT_UNDERSTOOD, told));
    }
    let mut counts = counts(store);
    counts.added += 1;
    COUNTS.set(store, &(), &Json(counts));
    JOBS.set(store, &counts.added, &Json(Job { body, attempts: 0, receipt: None }));
    wait(change, store, counts.added);
    answer(&counts.added)
}

/// The job can be taken; whoever watches for one is told.
fn wait(change: &Change, store: &mut Store, number: u64) {
    WAITING.set(store, &number, &());
    count(store, |counts| counts.waiting += 1);
    change.put(&WAITING.key(&number), b"");
}

fn check_time(ms: u64) -> Result<(), Refusal> {
    if (1..=HIDDEN_MS_MAX).contains(&ms) {
        return Ok(());
    }
    let told = format!("visible_after_ms is {ms}, 1 to {HIDDEN_MS_MAX} are allowed");
    Err(Refusal::new(NOT_UNDERSTOOD, told))
}

fn take(change: &Change, store: &mut Store, visible_after_ms: u64) -> Answer {
    check_time(visible_after_ms)?;
    let Some((number, ())) = WAITING.first(store, 1).pop() else { return Ok(b"null".to_vec()) };
    let Json(mut job) = JOBS.get(store, &number).expect("what waits is a job");
    job.attempts += 1;
    WAITING.delete(store, &number);
    count(store, |counts| counts.waiting -= 1);
    change.deleted(&WAITING.key(&number));
    hide(change, store, number, job, visible_after_ms)
}

/// Hides a job for a time, and answers it with its receipt.
fn hide(change: &Change, store: &mut Store, number: u64, mut job: Job, ms: u64) -> Answer {
    let too_many = |_| Refusal::new(TOO_MANY, "as many jobs are under way as the machine may have leases");
    let receipt = change.grant(ms).map_err(too_many)?;
    change.attach(receipt, &JOBS.key(&number)).map_err(too_many)?;
    job.receipt = Some(receipt);
    let told = answer(&Taken { job: number, receipt, attempts: job.attempts, body: &job.body });
    JOBS.set(store, &number, &Json(job));
    told
}

fn complete(change: &Change, store: &mut Store, number: u64, receipt: u64) -> Answer {
    taken(store, number, receipt)?;
    let _ = change.revoke(receipt);
    JOBS.delete(store, &number);
    count(store, |counts| counts.completed += 1);
    change.deleted(&JOBS.key(&number));
    Ok(Vec::new())
}

/// The job that a receipt is for.
fn taken(store: &Store, number: u64, receipt: u64) -> Result<Job, Refusal> {
    let job = JOBS.get(store, &number).map(|Json(job)| job).filter(|job| job.receipt == Some(receipt));
    let told = "the receipt is not good: the time was over, or the job is complete";
    job.ok_or_else(|| Refusal::new(NOT_YOURS, told))
}

fn counts(store: &Store) -> Counts {
    COUNTS.get(store, &()).map_or_else(Counts::default, |Json(counts)| counts)
}

fn count(store: &mut Store, change: impl FnOnce(&mut Counts)) {
    let mut counts = counts(store);
    change(&mut counts);
    COUNTS.set(store, &(), &Json(counts));
}

statehouse_guest::stored!(Queue);

#[cfg(test)]
mod tests {
    use statehouse_guest::TestHost;

    use super::*;

    const TAKE: &str = r#"{"take": {"visible_after_ms": 1000}}"#;

    fn told(host: &mut TestHost, command: &str) -> String {
        String::from_utf8(host.apply(command.as_bytes()).unwrap()).unwrap()
    }

    fn queue() -> TestHost {
        let mut host = TestHost::stored::<Queue>(b"").unwrap();
        assert_eq!(told(&mut host, r#"{"add": {"body": "a"}}"#), "1");
        assert_eq!(told(&mut host, r#"{"add": {"body": "b"}}"#), "2");
        host
    }

    #[test]
    fn the_scenario_comes_out_as_told() {
        TestHost::stored::<Queue>(b"").unwrap().play(include_str!("../scenario.txt"));
    }

    #[test]
    fn a_job_that_nobody_completes_comes_back_and_its_receipt_is_worth_nothing() {
        let mut host = queue();
        assert_eq!(told(&mut host, TAKE), r#"{"job":1,"receipt":1,"attempts":1,"body":"a"}"#);
        host.advance(1_000);
        let snapshot = host.snapshot();
        host.restore(&snapshot);
        assert_eq!(told(&mut host, TAKE), r#"{"job":1,"receipt":2,"attempts":2,"body":"a"}"#);
        let late = host.apply(br#"{"complete": {"job": 1, "receipt": 1}}"#).unwrap_err();
        assert_eq!(late.code, NOT_YOURS);
        assert_eq!(told(&mut host, r#"{"complete": {"job": 1, "receipt": 2}}"#), "");
        let twice = host.apply(br#"{"complete": {"job": 1, "receipt": 2}}"#).unwrap_err();
        assert_eq!(twice.code, NOT_YOURS);
        assert!(host.advance(10_000).is_empty(), "a completed job has no lease left");
        assert_eq!(host.query(b"{}").unwrap(), br#"{"added":2,"completed":1,"waiting":1}"#);
    }

    #[test]
    fn more_time_moves_the_end_and_replaces_the_receipt() {
        let mut host = queue();
        told(&mut host, TAKE);
        host.advance(900);
        let extended = told(&mut host, r#"{"extend": {"job": 1, "receipt": 1, "visible_after_ms": 1000}}"#);
        assert_eq!(extended, r#"{"job":1,"receipt":2,"attempts":1,"body":"a"}"#);
        assert!(host.advance(999).is_empty());
        assert_eq!(host.advance(1).len(), 1);
    }

    #[test]
    fn jobs_are_taken_in_order_until_there_are_none() {
        let mut host = queue();
        assert!(told(&mut host, TAKE).contains(r#""job":1"#));
        assert!(told(&mut host, TAKE).contains(r#""job":2"#));
        assert_eq!(told(&mut host, TAKE), "null");
        let refused = host.apply(br#"{"take": {"visible_after_ms": 0}}"#).unwrap_err();
        assert_eq!(refused.code, NOT_UNDERSTOOD);
    }
}
