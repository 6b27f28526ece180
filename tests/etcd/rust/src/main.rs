//! Puts a server through what the `etcd-client` crate offers, above all the lock and election services that
//! etcd itself serves and its Go client does not use.
//!
//!     rustclient HOST:PORT
//!
//! Prints what went wrong, and exits with 1 if anything did.

use std::error::Error;
use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, EventType, GetOptions, LockOptions, ProclaimOptions,
    PutOptions, ResignOptions, SortOrder, SortTarget, Txn, TxnOp, WatchFilterType, WatchOptions,
};
use tokio::time::timeout;

type Done = Result<(), Box<dyn Error>>;

/// How long one check may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs checks one by one, each bounded in time.
macro_rules! check {
    ($failed:ident, $client:ident, $($check:ident),*) => {
        $(match timeout(PATIENCE, $check($client.clone())).await {
            Ok(Ok(())) => println!("ok     {}", stringify!($check)),
            Ok(Err(why)) => {
                $failed += 1;
                println!("FAILED {}: {why}", stringify!($check));
            }
            Err(_) => {
                $failed += 1;
                println!("FAILED {}: no end within {PATIENCE:?}", stringify!($check));
            }
        })*
    };
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let endpoint = std::env::args().nth(1).ok_or("usage: rustclient HOST:PORT")?;
    let client = Client::connect([endpoint], None).await?;
    let mut failed = 0;
    check!(
        failed,
        client,
        keys,
        transactions,
        watches,
        leases,
        locks_are_taken_in_turn,
        a_lock_ends_with_its_lease,
        elections,
        maintenance,
        users
    );
    if failed > 0 {
        println!("{failed} failed");
        std::process::exit(1);
    }
    Ok(())
}

fn expect(holds: bool, what: impl Into<String>) -> Done {
    if holds { Ok(()) } else { Err(what.into().into()) }
}

async fn keys(mut client: Client) -> Done {
    for number in 0..20 {
        client.put(format!("rust/{number:02}"), number.to_string(), None).await?;
    }
    let newest_first =
        GetOptions::new().with_prefix().with_sort(SortTarget::Mod, SortOrder::Descend).with_limit(3);
    let got = client.get("rust/", Some(newest_first)).await?;
    let keys: Vec<&str> = got.kvs().iter().map(|kv| kv.key_str()).collect::<Result<_, _>>()?;
    expect(keys == ["rust/19", "rust/18", "rust/17"], format!("not the newest: {keys:?}"))?;
    expect(got.count() == 20 && got.more(), format!("count {}, more {}", got.count(), got.more()))?;
    let before = client.put("rust/00", "new", Some(PutOptions::new().with_prev_key())).await?;
    expect(before.prev_key().is_some_and(|kv| kv.value() == b"0"), "not the previous value")?;
    let deleted = client.delete("rust/", Some(DeleteOptions::new().with_prefix().with_prev_key())).await?;
    let (count, previous) = (deleted.deleted(), deleted.prev_kvs().len());
    expect(count == 20 && previous == 20, format!("{count} deleted, {previous} previous values"))
}

async fn transactions(mut client: Client) -> Done {
    client.put("rust-txn/a", "1", None).await?;
    let txn = |value: &str| {
        Txn::new()
            .when([Compare::value("rust-txn/a", CompareOp::Equal, value)])
            .and_then([TxnOp::put("rust-txn/a", "2", None), TxnOp::get("rust-txn/a", None)])
            .or_else([TxnOp::delete("rust-txn/a", None)])
    };
    let done = client.txn(txn("1")).await?;
    expect(done.succeeded() && done.op_responses().len() == 2, format!("not done: {done:?}"))?;
    let other = client.txn(txn("1")).await?;
    expect(!other.succeeded(), "done twice")?;
    let gone = client.get("rust-txn/a", None).await?;
    expect(gone.kvs().is_empty(), "the other branch was not taken")
}

async fn watches(mut client: Client) -> Done {
    let options = WatchOptions::new()
        .with_prefix()
        .with_prev_key()
        .with_progress_notify()
        .with_filters([WatchFilterType::NoDelete]);
    let mut stream = client.watch("rust-watch/", Some(options)).await?;
    let begun = stream.message().await?.ok_or("closed")?;
    expect(begun.created(), format!("no watch: {begun:?}"))?;
    client.put("rust-watch/a", "1", None).await?;
    client.delete("rust-watch/a", None).await?;
    client.put("rust-watch/a", "2", None).await?;
    let mut values = Vec::new();
    while values.len() < 2 {
        for event in stream.message().await?.ok_or("closed")?.events() {
            expect(event.event_type() == EventType::Put, "a filtered event")?;
            values.push(event.kv().ok_or("an event without key")?.value_str()?.to_owned());
        }
    }
    expect(values == ["1", "2"], format!("{values:?}"))?;
    stream.request_progress().await?;
    let progress = stream.message().await?.ok_or("closed")?;
    expect(progress.events().is_empty(), format!("no progress: {progress:?}"))?;
    stream.cancel(begun.watch_id()).await?;
    let ended = stream.message().await?.ok_or("closed")?;
    expect(ended.canceled(), format!("not canceled: {ended:?}"))
}

async fn leases(mut client: Client) -> Done {
    let lease = client.lease_grant(600, None).await?;
    client.put("rust-lease/a", "1", Some(PutOptions::new().with_lease(lease.id()))).await?;
    let (mut keeper, mut answers) = client.lease_keep_alive(lease.id()).await?;
    keeper.keep_alive().await?;
    let kept = answers.message().await?.ok_or("closed")?;
    expect(kept.ttl() == 600, format!("{} seconds", kept.ttl()))?;
    let all = client.leases().await?;
    expect(all.leases().iter().any(|known| known.id() == lease.id()), "not in the list")?;
    client.lease_revoke(lease.id()).await?;
    let gone = client.get("rust-lease/a", None).await?;
    expect(gone.kvs().is_empty(), "the key outlived its lease")
}

async fn locks_are_taken_in_turn(mut client: Client) -> Done {
    let first = client.lock("rust-lock", None).await?;
    let mut other = client.clone();
    let waiting = tokio::spawn(async move { other.lock("rust-lock", None).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    expect(!waiting.is_finished(), "two have the lock")?;
    client.unlock(first.key()).await?;
    let second = waiting.await??;
    expect(second.key() != first.key(), "the same key for two holders")?;
    client.unlock(second.key()).await?;
    Ok(())
}

async fn a_lock_ends_with_its_lease(mut client: Client) -> Done {
    let lease = client.lease_grant(600, None).await?;
    let options = LockOptions::new().with_lease(lease.id());
    let held = client.lock("rust-lock-lease", Some(options)).await?;
    let name = format!("rust-lock-lease/{:x}", lease.id());
    expect(held.key() == name.as_bytes(), format!("the key is {:?}", held.key()))?;
    client.lease_revoke(lease.id()).await?;
    let next = client.lock("rust-lock-lease", None).await?;
    client.unlock(next.key()).await?;
    Ok(())
}

async fn elections(mut client: Client) -> Done {
    let none = client.leader("rust-election").await;
    let told = none.err().map(|why| why.to_string()).unwrap_or_default();
    expect(told.contains("election: no leader"), format!("without a leader: {told:?}"))?;
    let lease = client.lease_grant(600, None).await?;
    let won = client.campaign("rust-election", "one", lease.id()).await?;
    let leader = won.leader().ok_or("no leader key")?.clone();
    let mut observed = client.observe("rust-election").await?;
    let seen = observed.message().await?.ok_or("closed")?;
    expect(seen.kv().is_some_and(|kv| kv.value() == b"one"), format!("observed {seen:?}"))?;
    client.proclaim("still one", Some(ProclaimOptions::new().with_leader(leader.clone()))).await?;
    let seen = observed.message().await?.ok_or("closed")?;
    expect(seen.kv().is_some_and(|kv| kv.value() == b"still one"), format!("observed {seen:?}"))?;
    client.resign(Some(ResignOptions::new().with_leader(leader.clone()))).await?;
    let usurped = client.proclaim("usurper", Some(ProclaimOptions::new().with_leader(leader))).await;
    expect(usurped.is_err(), "who is no leader proclaims")
}

async fn maintenance(mut client: Client) -> Done {
    let status = client.status().await?;
    let members = client.member_list().await?;
    expect(members.members().iter().any(|member| member.id() == status.leader()), "the leader is no member")?;
    client.defragment().await?;
    client.hash_kv(0).await?;
    let mut snapshot = client.snapshot().await?;
    let (mut bytes, mut left) = (0, u64::MAX);
    while let Some(part) = snapshot.message().await? {
        bytes += part.blob().len();
        expect(part.remaining_bytes() <= left, "more is left than before")?;
        left = part.remaining_bytes();
    }
    expect(left == 0 && bytes > 4_096, format!("{bytes} bytes, {left} left"))
}

async fn users(mut client: Client) -> Done {
    let refused = client.auth_enable().await;
    let told = refused.err().map(|why| why.to_string()).unwrap_or_default();
    expect(told.contains("etcdserver: root user does not exist"), format!("auth without root: {told:?}"))
}
