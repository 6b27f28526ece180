//! The same stream of requests to two servers, and every difference between what they answer.
//!
//! A difference is printed with the seed, the number of the request and both answers; the same seed repeats
//! it, since one request is answered by both before the next is sent.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::accepted;
use super::answer::{Answer, readable};
use super::faults::Fault;
use super::generate::{Generator, Past, STREAMS};
use super::request::{Request, Stubs};
use super::server::Server;
use super::watching::Watching;

/// After so many a run ends: they rarely have as many causes.
const DIFFERENCES_MAX: usize = 20;

/// How much of what is the same is shown before a difference.
const SAME_SHOWN: usize = 160;

/// How long watches may take to tell the same.
const PATIENCE: Duration = Duration::from_secs(15);

/// Longer than etcd takes to let a watch of the past catch up.
const CATCHES_UP: Duration = Duration::from_millis(250);

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub seed: u64,
    pub requests: usize,
    /// What the second server gets wrong, on purpose.
    pub fault: Option<Fault>,
}

/// What two servers answered differently.
#[derive(Debug)]
pub struct Difference {
    at: String,
    first: (&'static str, String),
    second: (&'static str, String),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.at)?;
        let (first, second) = (&self.first.1, &self.second.1);
        let same = first.bytes().zip(second.bytes()).take_while(|(a, b)| a == b).count();
        for (name, told) in [&self.first, &self.second] {
            writeln!(f, "  {name:>10}: {}", from(told, same.saturating_sub(SAME_SHOWN)))?;
        }
        Ok(())
    }
}

/// A text from about there on, where answers are long.
fn from(text: &str, at: usize) -> String {
    let at = (0..=at).rev().find(|&at| text.is_char_boundary(at)).unwrap_or_default();
    if at < SAME_SHOWN { text.to_owned() } else { format!("...{}", &text[at..]) }
}

/// How a run went.
#[derive(Debug, Default)]
pub struct Report {
    pub differences: Vec<Difference>,
    /// How many requests of each kind were sent, and how many of them were refused.
    pub kinds: BTreeMap<String, (usize, usize)>,
    /// How many lines watches told.
    pub events: usize,
    /// How often each accepted difference was met.
    pub accepted: BTreeMap<&'static str, usize>,
}

/// One server, with the streams of watches of a run.
struct Side {
    name: &'static str,
    stubs: Stubs,
    watching: Vec<Watching>,
}

impl Side {
    async fn of(server: &Server) -> Side {
        let stubs = Stubs::new(server.channel().await);
        let watching = (0..=STREAMS).map(|_| Watching::open(stubs.watch())).collect();
        Side { name: server.name, stubs, watching }
    }

    /// The answer to a request, and the id of the watch that it began.
    async fn send(&self, request: Request, past: &Past) -> (Answer, Option<i64>) {
        match request {
            Request::Watch(stream, create) => {
                let ends = create.start_revision > 0 && create.start_revision < past.compacted;
                self.watching[stream].create(create, ends).await
            }
            Request::CancelWatch(stream, id) => {
                let live = past.watches[stream].contains(&id);
                (self.watching[stream].cancel(id, live).await, None)
            }
            Request::Settle(stream) => (self.settle(stream, past).await, None),
            request => (self.stubs.send(request).await, None),
        }
    }

    async fn settle(&self, stream: usize, past: &Past) -> Answer {
        // etcd announces nothing for a stream without watches.
        if stream == STREAMS || past.watches[stream].is_empty() {
            return Answer::of("nothing to settle".into());
        }
        self.watching[stream].settle(past.revision).await
    }
}

/// Sends a stream of requests to both servers, which must be new.
pub async fn compare(first: &mut Server, second: &mut Server, run: Run) -> Report {
    let sides = [Side::of(first).await, Side::of(second).await];
    let past = Past { revision: 1, compacted: 0, watches: vec![Vec::new(); STREAMS + 1] };
    let mut comparison = Comparison { run, sides, past, report: Report::default() };
    let mut generator = Generator::new(run.seed);
    for number in 0..run.requests {
        let request = generator.next(&comparison.past);
        let go_on = comparison.step(number, request).await;
        if !go_on {
            break;
        }
    }
    comparison.compare_watches().await;
    first.still_runs();
    second.still_runs();
    comparison.report
}

struct Comparison {
    run: Run,
    sides: [Side; 2],
    past: Past,
    report: Report,
}

impl Comparison {
    /// One request; whether it makes sense to send another.
    async fn step(&mut self, number: usize, request: Request) -> bool {
        self.prepare(&request).await;
        let mistaken = match self.run.fault {
            Some(fault) => fault.mistaken(request.clone()),
            None => request.clone(),
        };
        let [first, second] = &self.sides;
        let answers =
            tokio::join!(first.send(request.clone(), &self.past), second.send(mistaken, &self.past));
        let ((of_first, watch), (of_second, _)) = answers;
        self.count(&request, &of_first);
        let revisions = (of_first.revision, of_second.revision);
        let parted = matches!(revisions, (Some(first), Some(second)) if first != second);
        if of_first != of_second {
            match accepted::reason(&request, &of_first.to_string(), &of_second.to_string()) {
                Some(reason) => *self.report.accepted.entry(reason).or_default() += 1,
                None => {
                    let told = readable(&format!("{request:?}"));
                    self.differ(
                        format!("request {number}: {told}"),
                        of_first.to_string(),
                        of_second.to_string(),
                    );
                }
            }
        }
        self.learn(&request, &of_first, watch);
        let enough = if self.run.fault.is_some() { 1 } else { DIFFERENCES_MAX };
        !parted && self.report.differences.len() < enough
    }

    /// Lets watches have what a request would race with: a compaction takes away what a watch has yet to
    /// tell, and the end of a watch what is under way.
    async fn prepare(&mut self, request: &Request) {
        match request {
            Request::Compact(_) => {
                for stream in 0..STREAMS {
                    self.settle(stream).await;
                }
                if !self.past.watches[STREAMS].is_empty() {
                    sleep(CATCHES_UP).await;
                }
            }
            Request::CancelWatch(stream, _) if *stream == STREAMS => sleep(CATCHES_UP).await,
            Request::CancelWatch(stream, _) => self.settle(*stream).await,
            _ => {}
        }
    }

    async fn settle(&mut self, stream: usize) {
        let [first, second] = &self.sides;
        let (of_first, of_second) =
            tokio::join!(first.settle(stream, &self.past), second.settle(stream, &self.past));
        if of_first != of_second {
            self.differ(format!("settling stream {stream}"), of_first.to_string(), of_second.to_string());
        }
    }

    fn learn(&mut self, request: &Request, answer: &Answer, watch: Option<i64>) {
        if let Some(revision) = answer.revision {
            self.past.revision = revision;
        }
        match request {
            Request::Compact(compact) if !answer.is_error => self.past.compacted = compact.revision,
            Request::Watch(stream, _) => self.past.watches[*stream].extend(watch),
            Request::CancelWatch(stream, id) => self.past.watches[*stream].retain(|live| live != id),
            _ => {}
        }
    }

    fn count(&mut self, request: &Request, answer: &Answer) {
        let kind = format!("{request:?}");
        let kind = kind.split(['(', ' ']).next().unwrap_or_default().to_owned();
        let (sent, refused) = self.report.kinds.entry(kind).or_default();
        *sent += 1;
        *refused += usize::from(answer.is_error);
    }

    fn differ(&mut self, at: String, first: String, second: String) {
        let [a, b] = &self.sides;
        self.report.differences.push(Difference { at, first: (a.name, first), second: (b.name, second) });
    }

    async fn compare_watches(&mut self) {
        if self.run.fault.is_some() && !self.report.differences.is_empty() {
            return;
        }
        for stream in 0..=STREAMS {
            if self.report.differences.is_empty() {
                self.settle(stream).await;
            }
            self.compare_stream(stream).await;
        }
    }

    async fn compare_stream(&mut self, stream: usize) {
        let deadline = Instant::now() + PATIENCE;
        let lines = |side: &Side| side.watching[stream].lines();
        while lines(&self.sides[0]) != lines(&self.sides[1]) && Instant::now() < deadline {
            sleep(Duration::from_millis(20)).await;
        }
        let (first, second) = (lines(&self.sides[0]), lines(&self.sides[1]));
        self.report.events += first.values().map(Vec::len).sum::<usize>();
        let ids: std::collections::BTreeSet<i64> = first.keys().chain(second.keys()).copied().collect();
        for id in ids {
            let (first, second) = (first.get(&id), second.get(&id));
            if let Some((at, first, second)) = first_difference(first, second) {
                self.differ(format!("stream {stream}, watch {id}, line {at}"), first, second);
            }
        }
        for side in 0..2 {
            for broken in self.sides[side].watching[stream].broken() {
                let name = self.sides[side].name;
                self.differ(format!("stream {stream}: {name} broke a promise"), broken, String::new());
            }
        }
    }
}

/// Where two lists part, and what they say there.
fn first_difference(
    first: Option<&Vec<String>>,
    second: Option<&Vec<String>>,
) -> Option<(usize, String, String)> {
    let (first, second) = (first.map_or(&[][..], Vec::as_slice), second.map_or(&[][..], Vec::as_slice));
    let line = |of: &[String], at: usize| of.get(at).cloned().unwrap_or(format!("nothing after {at} lines"));
    let at = (0..first.len().max(second.len())).find(|&at| first.get(at) != second.get(at))?;
    Some((at, line(first, at), line(second, at)))
}
