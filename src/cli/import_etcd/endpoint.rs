//! Reads a running etcd: its keys as of one revision, page by page, and then its leases.
//!
//! Values are put aside in a file without a name, which goes with the process. Nothing is written to the
//! etcd.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::time::Duration;

use anyhow::{Context, anyhow};
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;
use prost::Message;
use statehouse_kv::messages::{KeyValue, RangeRequest, RangeResponse};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::bar;
use super::source::{Key, Source, granted};
use crate::proto::etcd::etcdserverpb::lease_client::LeaseClient;
use crate::proto::etcd::etcdserverpb::raw::kv_client::KvClient;
use crate::proto::etcd::etcdserverpb::{LeaseLeasesRequest, LeaseTimeToLiveRequest};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Keys of the first page, and of any.
const PAGE_KEYS_FIRST: i64 = 100;
const PAGE_KEYS_MAX: i64 = 10_000;
/// What a page should weigh: the next one's keys are chosen by how heavy the last one's were.
const PAGE_BYTES: usize = 4 << 20;
/// Questions about leases that are under way at the same time.
const LEASES_AT_ONCE: usize = 64;
/// What an etcd with users says to who is none.
const NO_USER: &str = "user name is empty";

/// Reads the etcd at `address`.
pub async fn read(address: &str, timeout: Duration) -> anyhow::Result<Source> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.connect_timeout(CONNECT_TIMEOUT);
    let connected = endpoint.timeout(timeout).connect().await;
    let channel = connected.with_context(|| format!("no etcd answers at {address}"))?;
    let keys = read_keys(channel.clone()).await;
    let (revision, keys, spool) = keys.map_err(|why| explain(address, why))?;
    // After the keys: a lease that is not there any more has taken its keys along.
    let leases = read_leases(channel).await.map_err(|why| explain(address, why))?;
    Ok(Source::of_spool(revision, keys, leases, spool))
}

/// Says what to do about an etcd's refusal.
fn explain(address: &str, why: anyhow::Error) -> anyhow::Error {
    let advice = match why.downcast_ref::<Status>() {
        Some(status) if status.message().contains(NO_USER) => {
            "it asks for a user: import a file that `etcdctl snapshot save` made"
        }
        Some(status) if status.code() == Code::OutOfRange => {
            "it was compacted while it was read; nothing was written: try again"
        }
        Some(status) if status.code() == Code::Unimplemented => "it is no etcd of version 3",
        _ => "nothing was written",
    };
    why.context(format!("cannot read the etcd at {address}: {advice}"))
}

/// Puts all pages aside.
async fn read_keys(channel: Channel) -> anyhow::Result<(i64, Vec<Key>, File)> {
    // Pages are bounded by their limits: etcd has no limit on an answer.
    let mut client = KvClient::new(channel).max_decoding_message_size(usize::MAX);
    let mut spool = Spool::new()?;
    let mut request =
        RangeRequest { key: vec![0], range_end: vec![0], limit: PAGE_KEYS_FIRST, ..RangeRequest::default() };
    let mut page = client.range(request.clone()).await?.into_inner();
    // From now on it is always the same history.
    request.revision = page.header.map(|header| header.revision).unwrap_or_default();
    let progress = bar(usize::try_from(page.count).unwrap_or_default(), "keys", "reading etcd")?;
    while let Some(last) = spool.take(&page, &progress)?.filter(|_| page.more) {
        request.key = [last, &[0]].concat();
        request.limit = next_limit(&page);
        page = client.range(request.clone()).await?.into_inner();
    }
    progress.finish_and_clear();
    let (keys, file) = spool.finish()?;
    Ok((request.revision, keys, file))
}

/// As many keys as should weigh what a page should.
fn next_limit(page: &RangeResponse) -> i64 {
    let each = page.encoded_len().div_ceil(page.kvs.len().max(1)).max(1);
    i64::try_from(PAGE_BYTES / each).unwrap_or(PAGE_KEYS_MAX).clamp(1, PAGE_KEYS_MAX)
}

/// Where values wait.
struct Spool {
    file: BufWriter<File>,
    bytes: u64,
    keys: Vec<Key>,
}

impl Spool {
    fn new() -> anyhow::Result<Spool> {
        let file = tempfile::tempfile().context("cannot make a file to put values aside")?;
        Ok(Spool { file: BufWriter::with_capacity(1 << 20, file), bytes: 0, keys: Vec::new() })
    }

    /// Puts a page aside. Answers its last key.
    fn take<'p>(
        &mut self,
        page: &'p RangeResponse,
        progress: &ProgressBar,
    ) -> anyhow::Result<Option<&'p [u8]>> {
        for pair in &page.kvs {
            self.put(pair).context("cannot put values aside; TMPDIR says where that is")?;
            progress.inc(1);
        }
        Ok(page.kvs.last().map(|pair| &pair.key[..]))
    }

    fn put(&mut self, pair: &KeyValue) -> std::io::Result<()> {
        let encoded = pair.encode_to_vec();
        self.file.write_all(&encoded)?;
        // An id is the same 64 bits on both sides.
        let facts = (pair.create_revision, pair.lease as u64);
        self.keys.push(Key::spooled(pair.key.clone(), facts, (self.bytes, encoded.len())));
        self.bytes += encoded.len() as u64;
        Ok(())
    }

    fn finish(self) -> anyhow::Result<(Vec<Key>, File)> {
        let file = self.file.into_inner().map_err(|e| anyhow!("cannot put values aside: {}", e.error()))?;
        Ok((self.keys, file))
    }
}

/// The leases that there are, and the time that each was granted.
async fn read_leases(channel: Channel) -> anyhow::Result<BTreeMap<u64, Duration>> {
    let mut client = LeaseClient::new(channel).max_decoding_message_size(usize::MAX);
    let listed = client.lease_leases(LeaseLeasesRequest {}).await?.into_inner().leases;
    let progress = bar(listed.len(), "leases", "reading leases")?;
    let asked = stream::iter(listed).map(|lease| {
        let (mut client, progress) = (client.clone(), &progress);
        async move {
            let asked = LeaseTimeToLiveRequest { id: lease.id, keys: false };
            let answer = client.lease_time_to_live(asked).await?.into_inner();
            progress.inc(1);
            // Without any time left it has ended, or is about to.
            let lives = answer.ttl > 0;
            let found = lives.then(|| granted(answer.id, answer.granted_ttl)).transpose()?;
            anyhow::Ok(found.map(|granted| (answer.id as u64, granted)))
        }
    });
    let leases: Vec<Option<(u64, Duration)>> = asked.buffer_unordered(LEASES_AT_ONCE).try_collect().await?;
    progress.finish_and_clear();
    Ok(leases.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weight_of_a_page_chooses_the_keys_of_the_next() {
        let page = |count: usize, value_bytes: usize| {
            let pair = KeyValue { key: b"k".into(), value: vec![0; value_bytes], ..KeyValue::default() };
            RangeResponse { kvs: vec![pair; count], ..RangeResponse::default() }
        };
        assert_eq!(next_limit(&page(100, 10)), PAGE_KEYS_MAX);
        assert_eq!(next_limit(&page(2, 8 << 20)), 1);
        let middle = next_limit(&page(100, 10_000));
        assert!((400..430).contains(&middle), "{middle}");
        assert_eq!(next_limit(&page(0, 0)), PAGE_KEYS_MAX);
    }

    #[test]
    fn what_was_put_aside_is_read_back_without_keys_of_ended_leases() {
        let pair = |key: &str, create_revision, lease| KeyValue {
            key: key.into(),
            value: format!("value of {key}").into(),
            create_revision,
            lease,
            ..KeyValue::default()
        };
        let kvs = vec![pair("a", 9, 0), pair("b", 4, 7), pair("c", 5, 8)];
        let page = RangeResponse { kvs, ..RangeResponse::default() };
        let mut spool = Spool::new().unwrap();
        assert_eq!(spool.take(&page, &ProgressBar::hidden()).unwrap(), Some(&b"c"[..]));
        let (keys, file) = spool.finish().unwrap();
        let leases = BTreeMap::from([(7, Duration::from_secs(60))]);
        let source = Source::of_spool(9, keys, leases, file);
        assert_eq!((source.keys.len(), source.ended), (2, 1));
        assert_eq!(source.in_order_of_creation(), [1, 0]);
        let mut reader = source.reader();
        for key in &source.keys {
            let expected = format!("value of {}", String::from_utf8_lossy(&key.key));
            assert_eq!(reader.value(key).unwrap(), expected.as_bytes());
        }
    }
}
