//! What is done wrong on purpose, to see that it is noticed.

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mistake {
    /// A numbered command is applied as often as it comes.
    ApplyAgain,
    /// A new leader gives leases no time to be renewed.
    ForgetTerm,
    /// The leader does not look whether leases have ended.
    ForgetExpiry,
    /// A watcher that moves asks for one revision less than it lacks.
    SkipOnMove,
    /// A watcher that moves asks for one revision more than it lacks.
    RepeatOnMove,
}
