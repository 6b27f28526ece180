//! `statehouse kv`: the default machine, in etcd's words.

mod lock;
mod txn;

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use statehouse_kv::Call;
use statehouse_kv::messages::{
    CompactionRequest, DeleteRangeRequest, KeyValue, PutRequest, RangeRequest, RangeResponse, ResponseHeader,
};

use super::query::Freshness;
use super::{Global, Shown, duration, output};
use crate::cli::ExitCode;
use crate::machine::outcome::Outcome;

/// Use a machine of the module `builtin:kv`: a store of keys with revisions, as etcd's
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
        statehouse kv put colour green\n  \
        statehouse kv get colour\n  \
        statehouse kv get user/ --prefix --json\n  \
        statehouse kv --machine settings del user/ --prefix")]
pub struct Kv {
    /// The machine
    #[arg(long, value_name = "NAME", default_value = "kv", global = true)]
    machine: String,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Write a key; prints the revision
    #[command(after_help = "Examples:\n  \
            statehouse kv put colour green\n  \
            statehouse kv put temperature -4\n  \
            statehouse kv put session/7 open --ttl 30s")]
    Put(Put),
    /// Read a key; prints its value, or with --prefix a line for each key
    #[command(after_help = "Ends with 1 if there is no such key; a prefix may have none.\n\n\
            Examples:\n  \
            statehouse kv get colour\n  \
            statehouse kv get user/ --prefix --limit 10\n  \
            statehouse kv get colour --rev 4 --json")]
    Get(Get),
    /// Delete a key; prints how many were there
    #[command(after_help = "Examples:\n  \
            statehouse kv del colour\n  \
            statehouse kv del user/ --prefix\n  \
            statehouse kv del '' --prefix            # everything")]
    Del {
        /// The key
        key: OsString,
        /// Delete all keys that begin with it
        #[arg(long)]
        prefix: bool,
    },
    /// Compare and write as one revision; prints what was done, as JSON
    #[command(after_help = txn::HELP)]
    Txn(txn::Txn),
    /// Run a command while holding a lock, once it is to be had
    #[command(after_help = lock::HELP)]
    Lock(lock::Lock),
    /// Give up the history before a revision
    #[command(after_help = "Examples:\n  statehouse kv compact 1000")]
    Compact {
        /// The oldest revision that can still be read
        #[arg(value_name = "REVISION", value_parser = clap::value_parser!(i64).range(1..))]
        revision: i64,
    },
}

#[derive(Debug, Args)]
struct Put {
    /// The key; any bytes
    key: OsString,
    /// The value; any bytes
    #[arg(allow_negative_numbers = true)]
    value: OsString,
    /// Let the key end after this time, unless it is put again: 500ms, 10s, 5m, 2h, 30d
    #[arg(long, value_name = "TIME", value_parser = duration::ttl_ms)]
    ttl: Option<u64>,
    /// Attach the key to this lease: it is deleted when the lease ends
    #[arg(long, value_name = "ID", conflicts_with = "ttl")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    lease: Option<u64>,
}

#[derive(Debug, Args)]
struct Get {
    /// The key
    key: OsString,
    /// Read all keys that begin with it
    #[arg(long)]
    prefix: bool,
    /// Read the store as it was at this revision
    #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(i64).range(1..))]
    rev: Option<i64>,
    /// At most so many keys
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(i64).range(1..))]
    limit: Option<i64>,
    #[command(flatten)]
    freshness: Freshness,
}

impl Kv {
    pub async fn run(self, global: &Global) -> anyhow::Result<ExitCode> {
        let store = Store { global, machine: self.machine };
        if let Action::Lock(lock) = self.action {
            return lock.run(global, &store.machine).await;
        }
        store.act(self.action).await.map(|()| ExitCode::SUCCESS)
    }
}

/// A machine that is one of ours.
struct Store<'g> {
    global: &'g Global,
    machine: String,
}

impl Store<'_> {
    async fn act(&self, action: Action) -> anyhow::Result<()> {
        match action {
            Action::Put(put) => self.put(put).await,
            Action::Get(get) => self.get(get).await,
            Action::Del { key, prefix } => self.delete(key.into_vec(), prefix).await,
            Action::Lock(_) => unreachable!("it has a way of its own to end"),
            Action::Txn(txn) => {
                let answer = self.apply(&txn.request()?).await?;
                output::json(&txn::answer_json(&answer))?;
                Ok(())
            }
            Action::Compact { revision } => {
                let answer = self.apply(&CompactionRequest { revision, physical: false }).await?;
                let now = revision_of(answer.header.as_ref());
                if self.global.json {
                    output::json(&json!({ "revision": now, "compacted": revision }))?;
                }
                Ok(())
            }
        }
    }

    /// Sends a request through the log.
    async fn apply<C: Call>(&self, request: &C) -> anyhow::Result<C::Answer> {
        let applied = self.global.client()?.apply(&self.machine, request.to_envelope()).await?;
        self.check(&applied.outcome, || {
            output::outcome(&applied.outcome, (applied.index, applied.revision), true, false)
        })?;
        Ok(C::answer(output::answer(&applied.outcome)?)?)
    }

    /// With `--json`, shows a no as data, as `apply` and `query` do.
    fn check(&self, outcome: &Outcome, show: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let refused = !matches!(outcome, Outcome::Ok(_));
        if self.global.json && refused { show() } else { Ok(()) }
    }

    async fn put(&self, put: Put) -> anyhow::Result<()> {
        let request = PutRequest {
            key: put.key.into_vec(),
            value: put.value.into_vec(),
            // The same 64 bits, as etcd has them.
            lease: put.lease.unwrap_or_default() as i64,
            ttl_ms: put.ttl,
            ..PutRequest::default()
        };
        let answer = self.apply(&request).await?;
        let revision = revision_of(answer.header.as_ref());
        if self.global.json {
            output::json(&json!({ "revision": revision }))?;
        } else {
            output::line(revision)?;
        }
        Ok(())
    }

    async fn delete(&self, key: Vec<u8>, prefix: bool) -> anyhow::Result<()> {
        let (key, range_end) = span(key, prefix);
        let answer = self.apply(&DeleteRangeRequest { key, range_end, prev_kv: false }).await?;
        let revision = revision_of(answer.header.as_ref());
        if self.global.json {
            output::json(&json!({ "revision": revision, "deleted": answer.deleted }))?;
        } else {
            output::line(answer.deleted)?;
        }
        Ok(())
    }

    async fn get(&self, get: Get) -> anyhow::Result<()> {
        let consistency = get.freshness.consistency()?;
        let (key, range_end) = span(get.key.as_bytes(), get.prefix);
        let request = RangeRequest {
            key,
            range_end,
            limit: get.limit.unwrap_or_default(),
            revision: get.rev.unwrap_or_default(),
            ..RangeRequest::default()
        };
        let client = self.global.client()?;
        let answered = client.query(&self.machine, request.to_envelope(), consistency).await?;
        let outcome = answered.outcome.into();
        self.check(&outcome, || output::outcome(&outcome, (answered.index, answered.revision), true, false))?;
        let found = RangeRequest::answer(output::answer(&outcome)?)?;
        if self.global.json {
            output::json(&range_json(&found))?;
        } else if get.prefix {
            show_lines(&found)?;
        } else if let Some(pair) = found.kvs.first() {
            output::raw(&pair.value)?;
        }
        match found.kvs.is_empty() && !get.prefix {
            true if self.global.json => Err(Shown.into()),
            true => {
                let key = output::printable(get.key.as_bytes());
                Err(anyhow::anyhow!("no key \"{key}\" in machine {:?}", self.machine))
            }
            false => Ok(()),
        }
    }
}

fn show_lines(found: &RangeResponse) -> anyhow::Result<()> {
    for pair in &found.kvs {
        let (key, value) = (output::printable(&pair.key), output::printable(&pair.value));
        output::line(format_args!("{key}\t{value}"))?;
    }
    if found.more {
        let (shown, all) = (found.kvs.len(), found.count);
        output::tell(format_args!("{shown} of {all} keys; --limit left out the others"));
    }
    Ok(())
}

fn revision_of(header: Option<&ResponseHeader>) -> i64 {
    header.map(|header| header.revision).unwrap_or_default()
}

fn pair_json(pair: &KeyValue) -> Value {
    json!({
        "key": output::bytes_json(&pair.key),
        "value": output::bytes_json(&pair.value),
        "create_revision": pair.create_revision,
        "mod_revision": pair.mod_revision,
        "version": pair.version,
        "lease": pair.lease,
        "expires_at_ms": (pair.expires_at_ms != 0).then_some(pair.expires_at_ms),
    })
}

fn range_json(found: &RangeResponse) -> Value {
    json!({
        "revision": revision_of(found.header.as_ref()),
        "count": found.count,
        "more": found.more,
        "kvs": found.kvs.iter().map(pair_json).collect::<Vec<_>>(),
    })
}

/// A key and no end, or the first key with a prefix and the first key behind all that have it.
fn span(key: impl Into<Vec<u8>>, prefix: bool) -> (Vec<u8>, Vec<u8>) {
    let key = key.into();
    if !prefix {
        return (key, Vec::new());
    }
    let mut end = key.clone();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    // Both empty would be a missing key; one zero byte is etcd's word for the first and the last key.
    let or_zero = |bytes: Vec<u8>| if bytes.is_empty() { vec![0] } else { bytes };
    (or_zero(key), or_zero(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_first_key_without_it() {
        assert_eq!(span("ab", false), (b"ab".to_vec(), vec![]));
        assert_eq!(span("ab", true), (b"ab".to_vec(), b"ac".to_vec()));
        assert_eq!(span([b'a', 0xff], true), (vec![b'a', 0xff], b"b".to_vec()));
        assert_eq!(span([0xff, 0xff], true), (vec![0xff, 0xff], vec![0]));
        assert_eq!(span("", true), (vec![0], vec![0]));
    }
}
