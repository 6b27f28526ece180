//! What an operator may settle for one machine: limits that decide outcomes, and how much history is kept.
//!
//! They are replicated with the machine, because replicas that went by settings of their own would part ways.

use prost::Message;

/// A machine's settings. What is `None` has its default; in a change, it stays as it is, and a zero takes the
/// setting back to its default.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Settings {
    /// Leases that live at the same time.
    #[prost(uint64, optional, tag = "1")]
    pub leases_max: Option<u64>,
    /// Sessions that are open at the same time; each is a lease too.
    #[prost(uint64, optional, tag = "2")]
    pub sessions_max: Option<u64>,
    /// How far the numbers of a session may run ahead of what its client has acknowledged: as many outcomes
    /// are kept.
    #[prost(uint64, optional, tag = "3")]
    pub session_window: Option<u64>,
    /// Revisions of which events are kept.
    #[prost(uint64, optional, tag = "4")]
    pub history_revisions: Option<u64>,
    /// How long events are kept, in milliseconds of log time.
    #[prost(uint64, optional, tag = "5")]
    pub history_ms: Option<u64>,
    /// Bytes of events that are kept.
    #[prost(uint64, optional, tag = "6")]
    pub history_bytes: Option<u64>,
}

/// What goes for a machine: what was settled, and the defaults for the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InForce {
    /// Leases that may live at the same time.
    pub leases_max: u64,
    /// Sessions that may be open at the same time.
    pub sessions_max: u64,
    /// How far numbers may run ahead, at most [`SESSION_WINDOW_MAX`].
    pub session_window: u64,
    /// Revisions of which events are kept.
    pub history_revisions: u64,
    /// How long events are kept, in milliseconds.
    pub history_ms: u64,
    /// Bytes of events that are kept.
    pub history_bytes: u64,
}

/// What goes for a machine of which nothing was settled. History is kept for a day.
pub const DEFAULTS: InForce = InForce {
    leases_max: 1_000_000,
    sessions_max: 100_000,
    session_window: 256,
    history_revisions: 1_000_000,
    history_ms: 24 * 60 * 60 * 1_000,
    history_bytes: 256 << 20,
};

/// The widest window: an acknowledgement deletes as many rows.
pub const SESSION_WINDOW_MAX: u64 = 4_096;

impl Settings {
    /// What goes for a machine with these settings.
    pub fn in_force(&self) -> InForce {
        InForce {
            leases_max: self.leases_max.unwrap_or(DEFAULTS.leases_max),
            sessions_max: self.sessions_max.unwrap_or(DEFAULTS.sessions_max),
            session_window: self.session_window.unwrap_or(DEFAULTS.session_window).min(SESSION_WINDOW_MAX),
            history_revisions: self.history_revisions.unwrap_or(DEFAULTS.history_revisions),
            history_ms: self.history_ms.unwrap_or(DEFAULTS.history_ms),
            history_bytes: self.history_bytes.unwrap_or(DEFAULTS.history_bytes),
        }
    }

    /// These settings with what `change` names.
    pub fn with(self, change: &Settings) -> Settings {
        let settle = |now: Option<u64>, change: Option<u64>| match change {
            Some(0) => None,
            Some(value) => Some(value),
            None => now,
        };
        Settings {
            leases_max: settle(self.leases_max, change.leases_max),
            sessions_max: settle(self.sessions_max, change.sessions_max),
            session_window: settle(self.session_window, change.session_window),
            history_revisions: settle(self.history_revisions, change.history_revisions),
            history_ms: settle(self.history_ms, change.history_ms),
            history_bytes: settle(self.history_bytes, change.history_bytes),
        }
    }
}

/// In what a setting is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A number of things.
    Count,
    /// Milliseconds of log time.
    Milliseconds,
    /// Bytes.
    Bytes,
}

/// A setting, for those who name it: what it is called, and what it may be. The least is 1.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name for people.
    pub name: &'static str,
    /// In what it is counted.
    pub unit: Unit,
    /// The most that it may be.
    pub max: u64,
    place: fn(&mut Settings) -> &mut Option<u64>,
    in_force: fn(&InForce) -> u64,
}

impl Setting {
    /// All settings.
    pub const ALL: [Setting; 6] = [
        Setting {
            name: "leases_max",
            unit: Unit::Count,
            max: 1_000_000_000,
            place: |settings| &mut settings.leases_max,
            in_force: |now| now.leases_max,
        },
        Setting {
            name: "sessions_max",
            unit: Unit::Count,
            max: 1_000_000_000,
            place: |settings| &mut settings.sessions_max,
            in_force: |now| now.sessions_max,
        },
        Setting {
            name: "session_window",
            unit: Unit::Count,
            max: SESSION_WINDOW_MAX,
            place: |settings| &mut settings.session_window,
            in_force: |now| now.session_window,
        },
        Setting {
            name: "history_revisions",
            unit: Unit::Count,
            max: 1_000_000_000_000,
            place: |settings| &mut settings.history_revisions,
            in_force: |now| now.history_revisions,
        },
        Setting {
            name: "history_age",
            unit: Unit::Milliseconds,
            max: 100 * 365 * 24 * 60 * 60 * 1_000,
            place: |settings| &mut settings.history_ms,
            in_force: |now| now.history_ms,
        },
        Setting {
            name: "history_bytes",
            unit: Unit::Bytes,
            max: 1 << 50,
            place: |settings| &mut settings.history_bytes,
            in_force: |now| now.history_bytes,
        },
    ];

    /// The setting of this name.
    pub fn named(name: &str) -> Option<Setting> {
        Setting::ALL.into_iter().find(|setting| setting.name == name)
    }

    /// What it was settled to, if it was.
    pub fn settled(&self, mut settings: Settings) -> Option<u64> {
        *(self.place)(&mut settings)
    }

    /// Settles it; 0 takes it back to its default.
    pub fn settle(&self, settings: &mut Settings, value: u64) {
        *(self.place)(settings) = Some(value);
    }

    /// What goes with these settings.
    pub fn in_force(&self, settings: &Settings) -> u64 {
        (self.in_force)(&settings.in_force())
    }
}

impl Settings {
    /// Whether a change may be made.
    ///
    /// # Errors
    /// Names the setting, the value and what it may be.
    pub fn check(self) -> Result<(), String> {
        for setting in Setting::ALL {
            let Setting { name, max, .. } = setting;
            if let Some(value) = setting.settled(self).filter(|value| *value > max) {
                return Err(format!("{name} cannot be {value}: it may be 1 to {max}, or 0 for the default"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_its_own_place_and_bound() {
        let all = Setting::ALL.into_iter().zip(1..);
        let mut settings = Settings::default();
        all.clone().for_each(|(setting, value)| setting.settle(&mut settings, value));
        for (setting, value) in all {
            assert_eq!(setting.settled(settings), Some(value), "{}", setting.name);
            assert_eq!(setting.in_force(&settings), value, "{}", setting.name);
            assert_eq!(Setting::named(setting.name).map(|found| found.max), Some(setting.max));
            let mut most = Settings::default();
            setting.settle(&mut most, setting.max);
            assert!(most.check().is_ok());
            setting.settle(&mut most, setting.max + 1);
            let told = most.check().unwrap_err();
            assert!(told.contains(setting.name) && told.contains(&setting.max.to_string()), "{told}");
        }
        assert!(Setting::named("leases").is_none());
    }

    #[test]
    fn a_change_keeps_what_it_does_not_name_and_a_zero_takes_a_setting_back() {
        let settled = Settings { leases_max: Some(7), session_window: Some(9), ..Settings::default() };
        let change = Settings { leases_max: Some(0), history_ms: Some(5), ..Settings::default() };
        let now = settled.with(&change);
        assert_eq!(now, Settings { session_window: Some(9), history_ms: Some(5), ..Settings::default() });
        assert_eq!(now.in_force(), InForce { session_window: 9, history_ms: 5, ..DEFAULTS });
    }
}
