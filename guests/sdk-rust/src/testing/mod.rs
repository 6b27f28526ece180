//! A host for tests: one machine in this process, with no cluster and no WebAssembly.
//!
//! Time stands still until [`TestHost::advance`] moves it, and leases end then as they would: by deadline,
//! then id, each as an input of its own. Going over a limit of the contract panics, as it would trap. Every
//! change of a resident machine is checked against the rule that only the machine itself can keep: what
//! refuses changes nothing.

mod guest;
mod script;
mod simulated;

use self::guest::{Guest, Input, ResidentGuest, StoredGuest};
pub use self::simulated::Event;
use self::simulated::{Simulated, State, check};
use crate::host::EventKind;
use crate::machine::{Answer, LeaseEnd, Refusal, Resident, Stored, Upgrade};
use crate::{Change, View};

/// Where the log's clock of a test begins: 14 November 2023.
const START_MS: u64 = 1_700_000_000_000;
const ANSWER_BYTES_MAX: usize = 4 << 20;
const REFUSAL_BYTES_MAX: usize = 4 << 10;

/// A machine and its host.
pub struct TestHost {
    guest: Box<dyn Guest>,
    host: Simulated,
}

/// A lease that ended, and what the machine made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The lease, with the keys that were attached.
    pub end: LeaseEnd,
    /// What the machine answered.
    pub answer: Answer,
}

/// A machine as it was once: its state, and all that the host keeps of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    state: State,
    memory: Vec<u8>,
}

impl TestHost {
    /// Creates a stored machine.
    ///
    /// # Errors
    /// Its refusal: then there is no machine.
    pub fn stored<M: Stored + 'static>(configuration: &[u8]) -> Result<TestHost, Refusal> {
        TestHost::create(Box::new(StoredGuest::<M>::new()), configuration)
    }

    /// Creates a resident machine.
    ///
    /// # Errors
    /// Its refusal: then there is no machine.
    pub fn resident<M: Resident + 'static>(configuration: &[u8]) -> Result<TestHost, Refusal> {
        TestHost::create(Box::new(ResidentGuest::<M>::new()), configuration)
    }

    fn create(guest: Box<dyn Guest>, configuration: &[u8]) -> Result<TestHost, Refusal> {
        let mut host = TestHost { guest, host: Simulated::new(START_MS) };
        host.input(&Input::Created(configuration))?;
        Ok(host)
    }

    /// Applies a command.
    ///
    /// # Errors
    /// The machine's refusal.
    pub fn apply(&mut self, command: &[u8]) -> Answer {
        self.input(&Input::Command(command))
    }

    /// Asks the machine.
    ///
    /// # Errors
    /// The machine's refusal.
    ///
    /// # Panics
    /// If a resident machine changed while it answered, which it could only do by a cell.
    pub fn query(&self, request: &[u8]) -> Answer {
        let before = self.guest.save();
        let (index, time_ms, revision) = self.host.place();
        let view = View { host: &self.host, index, time_ms, revision };
        let answer = self.host.reading(|| self.guest.query(&view, &self.host, request));
        assert!(self.guest.save() == before, "the query changed the machine: {}", shown(request));
        check_answer(&answer);
        answer
    }

    /// Moves the log's clock on, and ends the leases whose time is over. Answers what became of them, in
    /// order.
    pub fn advance(&mut self, ms: u64) -> Vec<Ended> {
        let until = self.time_ms() + ms;
        self.host.set_time(until);
        let mut ended = Vec::new();
        while let Some(lease) = self.host.next_due(until) {
            ended.extend(self.revoke(lease));
        }
        ended
    }

    /// A client grants a lease. The machine may attach keys to it.
    pub fn grant(&mut self, ttl_ms: u64) -> u64 {
        self.host.grant_lease(ttl_ms)
    }

    /// A client renews a lease: it has its whole time again. Whether there is such a lease.
    pub fn renew(&mut self, lease: u64) -> bool {
        self.host.renew(lease)
    }

    /// A client revokes a lease, which the machine is told as if its time were over; none if there is no such
    /// lease.
    pub fn revoke(&mut self, lease: u64) -> Option<Ended> {
        let end = LeaseEnd { lease, keys: self.host.end(lease)? };
        let answer = self.input(&Input::LeaseEnded(&end));
        Some(Ended { end, answer })
    }

    /// Hands the machine over to another stored component.
    ///
    /// # Errors
    /// Its refusal: then the machine stays with the former one.
    pub fn upgrade_stored<M: Stored + 'static>(&mut self, argument: &[u8]) -> Answer {
        self.upgrade(Box::new(StoredGuest::<M>::new()), argument)
    }

    /// Hands the machine over to another resident component, which restores what the former one saves.
    ///
    /// # Errors
    /// Its refusal: then the machine stays with the former one.
    ///
    /// # Panics
    /// If it cannot read what was saved.
    pub fn upgrade_resident<M: Resident + 'static>(&mut self, argument: &[u8]) -> Answer {
        let mut next = ResidentGuest::<M>::new();
        next.restore(&self.guest.save());
        self.upgrade(Box::new(next), argument)
    }

    fn upgrade(&mut self, next: Box<dyn Guest>, argument: &[u8]) -> Answer {
        let former = std::mem::replace(&mut self.guest, next);
        let upgrade = Upgrade { previous: "0".repeat(64), argument: argument.to_vec() };
        let answer = self.input(&Input::Upgraded(&upgrade));
        if answer.is_err() {
            self.guest = former;
        }
        answer
    }

    /// Takes a snapshot, and sees whether the machine goes on from it as it is.
    ///
    /// # Panics
    /// If what a resident machine restores is not what it saved.
    pub fn snapshot(&mut self) -> Snapshot {
        let snapshot = Snapshot { state: self.host.state(), memory: self.guest.save() };
        self.guest.restore(&snapshot.memory);
        assert!(self.guest.save() == snapshot.memory, "the machine does not restore what it saved");
        snapshot
    }

    /// Goes back to a snapshot.
    pub fn restore(&mut self, snapshot: &Snapshot) {
        self.guest.restore(&snapshot.memory);
        self.host.set_state(snapshot.state.clone());
    }

    /// The log's clock.
    pub fn time_ms(&self) -> u64 {
        self.host.place().1
    }

    /// The revision of the last events; 1 before the first.
    pub fn revision(&self) -> u64 {
        self.host.place().2
    }

    /// All events so far.
    pub fn events(&self) -> Vec<Event> {
        self.host.state().events
    }

    /// The leases that live, and the keys attached to each.
    pub fn leases(&self) -> Vec<LeaseEnd> {
        self.host.leases()
    }

    /// All pairs of a stored machine's map.
    pub fn pairs(&self) -> Vec<crate::Pair> {
        self.host.state().map.into_iter().collect()
    }

    /// The lines that the machine has logged.
    pub fn log(&self) -> Vec<(crate::LogLevel, String)> {
        self.host.log()
    }

    fn input(&mut self, input: &Input) -> Answer {
        let (before, memory) = (self.host.state(), self.guest.save());
        let place = self.host.begin();
        let (index, time_ms, revision) = place;
        let change = Change { host: &self.host, index, offset: 0, time_ms, revision: revision + 1 };
        let answer = self.guest.apply(&change, &self.host, input);
        check_answer(&answer);
        if answer.is_err() {
            self.host.undo(before);
            assert!(self.guest.save() == memory, "the machine refused, but changed: {input}");
        } else {
            self.host.finish();
        }
        answer
    }
}

fn check_answer(answer: &Answer) {
    match answer {
        Ok(bytes) => check("bytes of an answer", bytes.len(), ANSWER_BYTES_MAX),
        Err(refusal) => {
            assert!(refusal.code != 0, "a refusal's code is never 0: the host would take it for a trap");
            check("bytes of a refusal", refusal.message.len(), REFUSAL_BYTES_MAX);
        }
    }
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
