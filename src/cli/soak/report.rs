//! What came of a soak.

use std::time::Duration;

use serde_json::{Value, json};

/// What was counted.
#[derive(Debug, Default)]
pub struct Report {
    /// Cycles that came to their end.
    pub cycles: u64,
    /// Writes that were acknowledged.
    pub writes: u64,
    /// Writes whose fate is unknown.
    pub unknown: u64,
    /// How often another node came to lead.
    pub leader_changes: u64,
    /// Writes that a deposed leader refused.
    pub stale_refusals: u64,
    /// Replicas that came back too far behind the log, and those of them that got a snapshot.
    pub reseeds_started: u64,
    pub reseeds_finished: u64,
    /// By how many entries a replica that came back was behind, at most.
    pub lag_max: u64,
    /// Replicas that differed from the others.
    pub divergences: u64,
    /// Keys whose acknowledged value is not there.
    pub missing: u64,
    pub elapsed: Duration,
}

impl Report {
    /// Whether nothing was found that must not be.
    pub fn is_well(&self) -> bool {
        self.divergences == 0 && self.missing == 0 && self.reseeds_started == self.reseeds_finished
    }

    /// All of it, on a line.
    pub fn line(&self) -> String {
        format!(
            "{}: {} cycles, {} writes ({} of unknown fate), {} leader changes, {} stale-leader refusals, {} \
             reseeds started, {} finished, largest lag {}, {} divergences, {} acknowledged keys missing, \
             {:.1} s",
            if self.is_well() { "well" } else { "FAILED" },
            self.cycles,
            self.writes,
            self.unknown,
            self.leader_changes,
            self.stale_refusals,
            self.reseeds_started,
            self.reseeds_finished,
            self.lag_max,
            self.divergences,
            self.missing,
            self.elapsed.as_secs_f64()
        )
    }

    /// All of it, for programs.
    pub fn json(&self) -> Value {
        json!({
            "well": self.is_well(),
            "cycles": self.cycles,
            "writes": self.writes,
            "unknown_fates": self.unknown,
            "leader_changes": self.leader_changes,
            "stale_leader_refusals": self.stale_refusals,
            "reseeds_started": self.reseeds_started,
            "reseeds_finished": self.reseeds_finished,
            "largest_lag": self.lag_max,
            "divergences": self.divergences,
            "missing_keys": self.missing,
            "elapsed_ms": self.elapsed.as_millis() as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_differs_a_key_that_is_missing_and_a_reseed_without_end_are_failures() {
        assert!(Report { reseeds_started: 2, reseeds_finished: 2, ..Report::default() }.is_well());
        for bad in [
            Report { divergences: 1, ..Report::default() },
            Report { missing: 1, ..Report::default() },
            Report { reseeds_started: 1, ..Report::default() },
        ] {
            assert!(!bad.is_well());
            assert!(bad.line().starts_with("FAILED") && bad.json()["well"] == false);
        }
    }
}
