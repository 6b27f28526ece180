//! Mistakes that the simulation makes on purpose, to show that it would find them.
//!
//! Some are made by the shard (behind `cfg(test)`), some by the simulated node around it. Each is one that a
//! real program made, or that this one would make without a line that looks as if it could go.

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::raft) enum Bug {
    /// A follower acknowledges entries before they are synced.
    AcknowledgeBeforeSync,
    /// A voter grants its vote before it is synced.
    VoteBeforeSync,
    /// A confirmed round of reads also answers reads that arrived after it was issued.
    ReadCoversLater,
    /// A replica speaks in a term that is not on its disk yet.
    SpeakInUnsyncedTerm,
    /// The engine's option that joins appends, which makes followers acknowledge what they never got.
    BatchAppends,
    /// A follower's question for a read point is passed on in its name.
    PassQuestionsOn,
    /// A node forgets at a restart whom it voted for.
    ForgetVote,
    /// A disk says that it has synced what it has not.
    LoseSynced,
    /// A state's applied index reaches the disk without the rest of the state.
    TearState,
    /// A snapshot is installed whether or not the state is newer.
    InstallUnwanted,
    /// A leader that asks another to take over goes on to answer reads by its lease.
    KeepLeaseInTransfer,
    /// A voter forgets at a restart that it had promised its leader to be patient.
    VoteAfterRestart,
    /// A node that lost its disk comes back under the name it had.
    ReuseReplica,
    /// A voter relies on the engine's count of ticks for its promise to be patient.
    PatienceInTicks,
    /// A leader takes its clock for as fast as everybody's.
    IgnoreDrift,
    /// A replica whose state is not to be relied on forgets that at a restart.
    ForgetHalt,
    /// A state is replaced by one that is ahead of what the log on disk holds.
    HastyReseed,
    /// A crash between the start of the log behind a snapshot and its installation is not made good.
    LeaveStaged,
}
