//! Settings of machines on the command line: `NAME=VALUE` read, and shown.
//!
//! Ages are times with their unit (`1h`), bytes may have one (`64MiB`), and `default` takes a setting back.

use serde_json::{Value, json};

use super::{duration, output};
use crate::machine::settings::{Setting, Settings, Unit};

/// The units of bytes.
const BYTES: [(&str, u64); 4] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("", 1)];

/// One setting to be settled.
#[derive(Clone, Copy, Debug)]
pub struct Assignment {
    setting: Setting,
    /// 0: the default.
    value: u64,
}

/// Reads `NAME=VALUE`.
pub fn assignment(text: &str) -> Result<Assignment, String> {
    let (name, value) =
        text.split_once('=').ok_or_else(|| format!("{text:?} settles nothing: NAME=VALUE is expected"))?;
    let setting = Setting::named(name).ok_or_else(|| {
        let names: Vec<&str> = Setting::ALL.iter().map(|setting| setting.name).collect();
        format!("no setting is called {name:?}: there are {}", names.join(", "))
    })?;
    if value == "default" {
        return Ok(Assignment { setting, value: 0 });
    }
    match read(setting.unit, value) {
        Some(number) if (1..=setting.max).contains(&number) => Ok(Assignment { setting, value: number }),
        _ => Err(format!("{name} cannot be {value:?}: it may be {}, or `default`", bounds(&setting))),
    }
}

/// The settings of assignments; the last of those of the same name counts.
pub fn settings(assignments: &[Assignment]) -> Settings {
    let mut settings = Settings::default();
    for Assignment { setting, value } in assignments {
        setting.settle(&mut settings, *value);
    }
    settings
}

fn read(unit: Unit, text: &str) -> Option<u64> {
    match unit {
        Unit::Count => text.parse().ok(),
        Unit::Milliseconds => duration::milliseconds(text).ok(),
        Unit::Bytes => {
            let (number, (_, factor)) =
                BYTES.iter().find_map(|unit| Some((text.strip_suffix(unit.0)?, unit)))?;
            number.parse::<u64>().ok()?.checked_mul(*factor)
        }
    }
}

fn bounds(setting: &Setting) -> String {
    match setting.unit {
        Unit::Count => format!("1 to {}", setting.max),
        Unit::Milliseconds => {
            format!("a time such as 90s, 12h or 7d, up to {}", duration::shown(setting.max))
        }
        Unit::Bytes => format!("a number of bytes such as 64MiB, up to {}", bytes(setting.max)),
    }
}

/// In the largest unit that leaves a whole number.
fn bytes(number: u64) -> String {
    let fits = |unit: &&(&str, u64)| number.is_multiple_of(unit.1);
    let (name, factor) = BYTES.iter().filter(fits).max_by_key(|unit| unit.1).unwrap_or(&("", 1));
    format!("{}{name}", number / factor)
}

fn shown(setting: &Setting, value: u64) -> String {
    match setting.unit {
        Unit::Count => value.to_string(),
        Unit::Milliseconds => duration::shown(value),
        Unit::Bytes => bytes(value),
    }
}

/// A line for each setting, with what is default marked.
pub fn show(settings: &Settings) -> anyhow::Result<()> {
    for setting in Setting::ALL {
        let value = shown(&setting, setting.in_force(settings));
        let mark = if setting.settled(*settings).is_none() { " (default)" } else { "" };
        output::line(format_args!("{:<18}{value}{mark}", setting.name))?;
    }
    Ok(())
}

/// What goes, by name, with what is default marked; ages in milliseconds.
pub fn as_json(settings: &Settings) -> Value {
    let entry = |setting: &Setting| {
        let name = match setting.unit {
            Unit::Milliseconds => format!("{}_ms", setting.name),
            Unit::Count | Unit::Bytes => setting.name.to_owned(),
        };
        let default = setting.settled(*settings).is_none();
        (name, json!({ "value": setting.in_force(settings), "default": default }))
    };
    Value::Object(Setting::ALL.iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit_is_read_and_shown() {
        for (text, value, shown_as) in [
            ("leases_max=5", 5, "5"),
            ("session_window=4096", 4_096, "4096"),
            ("history_age=90m", 5_400_000, "90m"),
            ("history_age=2h", 7_200_000, "2h"),
            ("history_bytes=100", 100, "100"),
            ("history_bytes=64MiB", 64 << 20, "64MiB"),
            ("history_bytes=1024MiB", 1 << 30, "1GiB"),
        ] {
            let Assignment { setting, value: read } = assignment(text).unwrap();
            assert_eq!((read, shown(&setting, read).as_str()), (value, shown_as), "{text}");
        }
        let assigned = ["leases_max=5", "leases_max=default"].map(|text| assignment(text).unwrap());
        assert_eq!(settings(&assigned), Settings { leases_max: Some(0), ..Settings::default() });
    }

    #[test]
    fn names_and_values_that_cannot_be_are_told_with_those_that_can() {
        for (text, words) in [
            ("leases_max", "NAME=VALUE"),
            ("leases=5", "leases_max, sessions_max"),
            ("leases_max=0", "1 to 1000000000"),
            ("leases_max=many", "1 to"),
            ("session_window=4097", "1 to 4096"),
            ("history_age=60", "up to 36500d"),
            ("history_age=36501d", "up to 36500d"),
            ("history_bytes=1TB", "64MiB"),
            ("history_bytes=99999999999GiB", "up to 1048576GiB"),
        ] {
            let told = assignment(text).unwrap_err();
            assert!(told.contains(words), "{text}: {told}");
        }
    }

    #[test]
    fn what_is_default_is_marked() {
        let told = as_json(&Settings { history_ms: Some(5), ..Settings::default() });
        assert_eq!(told["history_age_ms"], json!({ "value": 5, "default": false }));
        assert_eq!(told["session_window"], json!({ "value": 256, "default": true }));
    }
}
