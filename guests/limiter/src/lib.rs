//! A rate limiter: token buckets by name, filled by the log's clock.
//!
//! Commands are JSON: `{"take": {"bucket": "mail", "tokens": 2}}` takes tokens (1 if not said) if there are
//! so many, and answers what is left; `{"set": {"bucket": "mail", "capacity": 10, "per_second": 5}}` makes or
//! changes a bucket. The query `{"bucket": "mail"}` answers what there is. Buckets are kept to a thousandth
//! of a token, in whole numbers.
//!
//! A refused take is an input like any other, so all replicas agree on who came first.

use serde::{Deserialize, Serialize};
use statehouse_guest::json::{Json, answer, read};
use statehouse_guest::{Answer, Change, Refusal, Store, Stored, Table, View};

const NOT_UNDERSTOOD: u32 = 1;
const NO_BUCKET: u32 = 2;
const TOO_FAST: u32 = 3;

const BUCKETS: Table<String, Json<Bucket>> = Table::new(b"bucket/");

/// The most tokens of a bucket, and the most that it gets in a second.
const TOKENS_MAX: u64 = 1_000_000_000;

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Bucket {
    capacity: u64,
    per_second: u64,
    /// Thousandths of a token, at `time_ms`.
    milli: u64,
    time_ms: u64,
}

impl Bucket {
    /// The bucket as it is at a later time. A token in a second is a thousandth of one in a millisecond.
    fn at(self, time_ms: u64) -> Bucket {
        let gained = u128::from(time_ms.saturating_sub(self.time_ms)) * u128::from(self.per_second);
        let full = u128::from(self.capacity) * 1_000;
        // At most what a full bucket has, so it fits.
        let milli = (u128::from(self.milli) + gained).min(full) as u64;
        Bucket { milli, time_ms, ..self }
    }

    /// When there will be `tokens`, in milliseconds from its time; none if never.
    fn wait_ms(self, tokens: u64) -> Option<u64> {
        if tokens > self.capacity || self.per_second == 0 {
            return None;
        }
        Some((tokens * 1_000).saturating_sub(self.milli).div_ceil(self.per_second))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Command {
    Set { bucket: String, capacity: u64, per_second: u64 },
    Take { bucket: String, tokens: Option<u64> },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Query {
    bucket: String,
}

#[derive(Serialize)]
struct Left {
    tokens: u64,
    capacity: u64,
}

struct Limiter;

impl Stored for Limiter {
    fn command(change: &Change, store: &mut Store, command: &[u8]) -> Answer {
        match read(command, NOT_UNDERSTOOD)? {
            Command::Set { bucket, capacity, per_second } => set(change, store, bucket, capacity, per_second),
            Command::Take { bucket, tokens } => take(change, store, &bucket, tokens.unwrap_or(1)),
        }
    }

    fn query(view: &View, store: &Store, request: &[u8]) -> Answer {
        let Query { bucket } = read(request, NOT_UNDERSTOOD)?;
        told(named(store, &bucket)?.at(view.time_ms()))
    }
}

fn set(change: &Change, store: &mut Store, name: String, capacity: u64, per_second: u64) -> Answer {
    if name.is_empty() || name.len() > 200 || capacity == 0 || capacity.max(per_second) > TOKENS_MAX {
        let bounds =
            "a name of 1 to 200 bytes, a capacity of 1 to 10^9 and at most 10^9 tokens a second are expected";
        return Err(Refusal::new(NOT_UNDERSTOOD, bounds));
    }
    let time_ms = change.time_ms();
    let milli = match BUCKETS.get(store, &name) {
        Some(Json(former)) => former.at(time_ms).milli.min(capacity * 1_000),
        None => capacity * 1_000,
    };
    let bucket = Bucket { capacity, per_second, milli, time_ms };
    BUCKETS.set(store, &name, &Json(bucket));
    change.put(name.as_bytes(), format!("{capacity} {per_second}").as_bytes());
    told(bucket)
}

fn take(change: &Change, store: &mut Store, name: &String, tokens: u64) -> Answer {
    let mut bucket = named(store, name)?.at(change.time_ms());
    let cost = tokens.saturating_mul(1_000);
    let Some(left) = bucket.milli.checked_sub(cost) else {
        let wait = match bucket.wait_ms(tokens) {
            Some(ms) => format!("there are so many in {ms} ms"),
            None => "there will never be so many".to_owned(),
        };
        return Err(Refusal::new(TOO_FAST, format!("{name} has {} tokens: {wait}", bucket.milli / 1_000)));
    };
    bucket.milli = left;
    BUCKETS.set(store, name, &Json(bucket));
    told(bucket)
}

fn named(store: &Store, name: &String) -> Result<Bucket, Refusal> {
    let bucket = BUCKETS.get(store, name);
    bucket
        .map(|Json(bucket)| bucket)
        .ok_or_else(|| Refusal::new(NO_BUCKET, format!("there is no bucket {name:?}")))
}

fn told(bucket: Bucket) -> Answer {
    answer(&Left { tokens: bucket.milli / 1_000, capacity: bucket.capacity })
}

statehouse_guest::stored!(Limiter);

#[cfg(test)]
mod tests {
    use statehouse_guest::TestHost;

    use super::*;

    fn limiter() -> TestHost {
        let mut host = TestHost::stored::<Limiter>(b"").unwrap();
        host.apply(br#"{"set": {"bucket": "mail", "capacity": 3, "per_second": 2}}"#).unwrap();
        host
    }

    const TAKE: &[u8] = br#"{"take": {"bucket": "mail"}}"#;

    #[test]
    fn the_scenario_comes_out_as_told() {
        TestHost::stored::<Limiter>(b"").unwrap().play(include_str!("../scenario.txt"));
    }

    #[test]
    fn a_bucket_gives_what_it_has_and_fills_with_time() {
        let mut host = limiter();
        for left in [2, 1, 0] {
            let told = host.apply(TAKE).unwrap();
            assert_eq!(told, format!(r#"{{"tokens":{left},"capacity":3}}"#).into_bytes());
        }
        let refused = host.apply(TAKE).unwrap_err();
        assert_eq!(refused.code, TOO_FAST);
        assert!(refused.message.contains("in 500 ms"), "{refused}");
        host.advance(499);
        assert!(host.apply(TAKE).is_err());
        host.advance(1);
        assert!(host.apply(TAKE).is_ok());
        host.advance(1_000_000);
        assert_eq!(host.query(br#"{"bucket": "mail"}"#).unwrap(), br#"{"tokens":3,"capacity":3}"#);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut host = limiter();
        let mut code = |command: &str| host.apply(command.as_bytes()).unwrap_err().code;
        assert_eq!(code("take"), NOT_UNDERSTOOD);
        assert_eq!(code(r#"{"take": {"bucket": "post"}}"#), NO_BUCKET);
        assert_eq!(code(r#"{"take": {"bucket": "mail", "tokens": 4}}"#), TOO_FAST);
        assert_eq!(code(r#"{"take": {"bucket": "mail", "tokens": 18446744073709551615}}"#), TOO_FAST);
        assert_eq!(code(r#"{"set": {"bucket": "mail", "capacity": 0, "per_second": 1}}"#), NOT_UNDERSTOOD);
    }
}
