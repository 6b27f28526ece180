//! What a counter understands and computes, apart from where its state is.

use statehouse_guest::{Change, LeaseEnd, Refusal};

const HOLD_MS_MAX: u64 = 86_400_000;

/// A command, understood.
pub struct Command {
    /// What to add.
    pub step: i64,
    /// For how long; without it, for good.
    pub hold_ms: Option<u64>,
}

/// Reads `5` or `5 for 1500`.
pub fn command(text: &[u8]) -> Result<Command, Refusal> {
    let at = text.windows(5).position(|part| part == b" for ");
    let Some(at) = at else { return Ok(Command { step: number(text)?, hold_ms: None }) };
    let step = number(&text[..at])?;
    let ms = digits(&text[at + 5..]).filter(|ms| (1..=HOLD_MS_MAX).contains(ms));
    let ms =
        ms.ok_or_else(|| Refusal::new(3, "the time is a whole number of milliseconds from 1 to 86400000"))?;
    Ok(Command { step, hold_ms: Some(ms) })
}

/// Reads a whole number: a sign or none, and 1 to 19 digits.
pub fn number(text: &[u8]) -> Result<i64, Refusal> {
    let (negative, rest) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    let number = digits(rest).map(i128::from).map(|size| if negative { -size } else { size });
    let number = number.and_then(|number| i64::try_from(number).ok());
    number.ok_or_else(|| Refusal::new(1, "a whole number between -2^63 and 2^63-1 is expected, like 5 or -5"))
}

fn digits(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let is_number = (1..=19).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { text.parse().ok() } else { None }
}

/// The sum with `step` added.
pub fn add(sum: i64, step: i64) -> Result<i64, Refusal> {
    in_range(sum.checked_add(step))
}

/// A lease that ends after `ms`. What is to be taken back then is in the name of the key attached to it.
pub fn hold(change: &Change, step: i64, ms: u64) -> Result<(), Refusal> {
    let too_many = |_| Refusal::new(4, "there are as many numbers held as the machine may hold");
    let lease = change.grant(ms).map_err(too_many)?;
    change.attach(lease, format!("{lease} {step}").as_bytes()).map_err(too_many)
}

/// The sum without what was held by the lease that ended.
pub fn without(sum: i64, ended: &LeaseEnd) -> Result<i64, Refusal> {
    ended.keys.iter().try_fold(sum, |sum, key| {
        let at = key.iter().position(|byte| *byte == b' ').map_or(0, |space| space + 1);
        in_range(sum.checked_sub(number(&key[at..])?))
    })
}

fn in_range(sum: Option<i64>) -> Result<i64, Refusal> {
    sum.ok_or_else(|| Refusal::new(2, "the sum would leave the range of -2^63 to 2^63-1"))
}
