//! Watches that go on by themselves: at another node when one fails, from the next revision.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{ANSWER_BYTES_MAX, Client, gives_no_answer};
use crate::error::Error;
use crate::id::Revision;
use crate::node::request::{WatchSpec, Watched};
use crate::proto::status;
use crate::proto::v1::watch_request::Request as Asked;
use crate::proto::v1::watch_response::Response as Told;
use crate::proto::v1::watches_client::WatchesClient;
use crate::proto::v1::{self, WatchRequest};
use crate::proto::watches::{self, Fragments};
use crate::time::Clock;

/// The only watch of its stream.
const ID: u64 = 1;

/// How long it waits before it tries again, at first and at most.
const PAUSE_MS: u64 = 20;
const PAUSE_MAX_MS: u64 = 2_000;

/// A watch of a machine. When its node fails it goes on at the next one, from the next revision: no event is
/// lost, and none comes twice.
pub struct ClientWatch {
    client: Client,
    machine: String,
    /// With the next revision, once one is known.
    spec: WatchSpec,
    open: Option<Open>,
    /// Whether a progress mark was asked for and has not come.
    progress_wanted: bool,
}

/// A watch's stream at a node.
struct Open {
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<v1::WatchResponse>,
    /// Of the node, among those of the client.
    number: usize,
    address: String,
    fragments: Fragments,
}

impl Client {
    /// Watches a machine, once a node has begun to.
    ///
    /// # Errors
    /// `Compacted` if the events from its first revision on are not kept any more, `Invalid` for a revision
    /// of the future, `NotFound`; `Unavailable` if no node begins within the time limit of a request.
    pub async fn watch(&self, machine: &str, spec: WatchSpec) -> Result<ClientWatch, Error> {
        let (client, machine) = (self.clone(), machine.to_owned());
        let mut watch = ClientWatch { client, machine, spec, open: None, progress_wanted: false };
        watch.connect().await?;
        Ok(watch)
    }
}

impl ClientWatch {
    /// The next revision that it has not told of.
    pub fn next_revision(&self) -> Revision {
        self.spec.from.unwrap_or_default()
    }

    /// Asks for a progress mark, which comes when everything that there is was told.
    pub fn want_progress(&mut self) {
        self.progress_wanted = true;
        if let Some(open) = &self.open {
            open.want_progress();
        }
    }

    /// Waits for what is to be told next. May be dropped while it waits, without loss.
    ///
    /// # Errors
    /// `Compacted`: it was away for so long that events are gone. `Unavailable`: no node went on with it
    /// within the time limit of a request; calling this again tries again. Others end it.
    pub async fn next(&mut self) -> Result<Watched, Error> {
        loop {
            if self.open.is_none() {
                self.connect().await?;
            }
            let Some(open) = &mut self.open else { continue };
            match open.next().await {
                Ok(told) => {
                    self.advance(&told);
                    return Ok(told);
                }
                Err(why) => {
                    let failed = self.open.take();
                    if !passes(&why) {
                        return Err(why);
                    }
                    tracing::debug!(%why, machine = self.machine, "a watch goes on at another node");
                    if let Some(failed) = failed {
                        self.client.nodes.avoid(failed.number);
                    }
                }
            }
        }
    }

    fn advance(&mut self, told: &Watched) {
        let up_to = match told {
            Watched::Events(events) => events.revision,
            Watched::Progress(revision) => {
                self.progress_wanted = false;
                *revision
            }
        };
        self.spec.from = Some(up_to.next().max(self.next_revision()));
    }

    /// Has a node begin, or go on, with the watch. Tries for as long as a request may take.
    async fn connect(&mut self) -> Result<(), Error> {
        let clock = Clock::start();
        let mut pause_ms = PAUSE_MS;
        loop {
            let mut last = None;
            let nodes: Vec<usize> = self.client.nodes.in_turn().map(|(number, _)| number).collect();
            for number in nodes {
                match self.connect_to(number).await {
                    Ok(()) => return Ok(()),
                    Err(why) if passes(&why) => {
                        if gives_no_answer(&why) {
                            self.client.nodes.avoid(number);
                        }
                        last = Some(why);
                    }
                    Err(why) => return Err(why),
                }
            }
            if let Some(why @ Error::Overloaded(_)) = last {
                return Err(why);
            }
            let used = Duration::from_nanos(clock.elapsed_ns());
            let last = last.map_or_else(String::new, |why| why.to_string());
            if used + Duration::from_millis(pause_ms) >= self.client.timeout {
                let (machine, waited_ms) = (&self.machine, used.as_millis());
                return Err(Error::Unavailable(format!(
                    "no node watches {machine:?} within {waited_ms} ms: {last}"
                )));
            }
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            pause_ms = (pause_ms * 2).min(PAUSE_MAX_MS);
        }
    }

    async fn connect_to(&mut self, number: usize) -> Result<(), Error> {
        let peer = &self.client.nodes.nodes[number];
        let address = peer.address.clone();
        let (requests, queue) = mpsc::channel(4);
        let create = Asked::Create(watches::create(ID, &self.machine, &self.spec));
        let first = requests.send(WatchRequest { request: Some(create) });
        first.await.map_err(|_| Error::Unavailable("the stream ended before it began".into()))?;
        let mut client = WatchesClient::new(peer.channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
        let opened = tokio::time::timeout(self.client.timeout, client.watch(ReceiverStream::new(queue)));
        let late = || Error::DeadlineExceeded(format!("{address} did not begin to watch in time"));
        let responses = opened.await.map_err(|_| late())?.map_err(|e| status::from_status(&e, &address))?;
        let fragments = Fragments::default();
        let mut open =
            Open { requests, responses: responses.into_inner(), number, address: address.clone(), fragments };
        let began = tokio::time::timeout(self.client.timeout, open.began()).await;
        let revision = began.map_err(|_| late())??;
        self.spec.from = Some(self.spec.from.unwrap_or_default().max(revision));
        if self.progress_wanted {
            open.want_progress();
        }
        self.open = Some(open);
        Ok(())
    }
}

/// Whether another node, or the same one later, may go on.
fn passes(why: &Error) -> bool {
    matches!(
        why,
        Error::Unavailable(_)
            | Error::NotLeader { .. }
            | Error::Unknown(_)
            | Error::DeadlineExceeded(_)
            | Error::Overloaded(_)
            | Error::Fault(_)
    )
}

impl Open {
    /// Waits until the watch has begun; answers its first revision.
    async fn began(&mut self) -> Result<Revision, Error> {
        match self.response().await? {
            Told::Created(v1::WatchCreated { revision }) => Ok(Revision(revision)),
            _ => Err(unexpected()),
        }
    }

    async fn next(&mut self) -> Result<Watched, Error> {
        loop {
            match self.response().await? {
                Told::Events(events) => {
                    if let Some(events) = self.fragments.take(events)? {
                        return Ok(Watched::Events(events));
                    }
                }
                Told::Progress(v1::WatchProgress { revision }) => {
                    return Ok(Watched::Progress(Revision(revision)));
                }
                Told::Created(_) | Told::Canceled(_) => return Err(unexpected()),
            }
        }
    }

    async fn response(&mut self) -> Result<Told, Error> {
        let response = self.responses.message().await.map_err(|e| status::from_status(&e, &self.address))?;
        let ended = || Error::Unavailable(format!("{} ended the watch without a reason", self.address));
        match response.ok_or_else(ended)?.response {
            Some(Told::Canceled(v1::WatchCanceled { failure: Some(failure) })) => {
                Err(status::from_failure(failure))
            }
            Some(told) => Ok(told),
            None => Err(unexpected()),
        }
    }

    fn want_progress(&self) {
        let request = WatchRequest { request: Some(Asked::Progress(v1::AskProgress { id: ID })) };
        // One that waits to be sent says the same; and a stream that has ended is replaced by another.
        let _ = self.requests.try_send(request);
    }
}

fn unexpected() -> Error {
    Error::Invalid("an answer of a watch that was not expected: the node may be newer".into())
}
