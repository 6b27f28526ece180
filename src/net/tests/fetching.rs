//! Files: whole, from any place on, after breaks, not too fast.

use super::*;
use crate::id::Digest;

const PIECE: usize = super::super::bulk::PIECE_BYTES;
const NAME: BulkName = BulkName::Snapshot { group: GroupId(3), index: Index(9) };

fn file(bytes: usize) -> Bytes {
    (0..bytes).map(|at| (at / 7 + at / 1_000) as u8).collect::<Vec<_>>().into()
}

/// A node that fetches through a proxy from one that has a file.
async fn nodes(file: Option<Bytes>, on_disk: bool, source: NetConfig) -> (Net, Proxy, Arc<TestHost>, Net) {
    let (_, one) = start(NetConfig { bulk_patience_ms: 1_000, ..config(ONE) }).await;
    let host = TestHost::with(file, on_disk);
    let two = Net::start(source, host.clone()).await.unwrap();
    let proxy = Proxy::start(two.address()).await;
    one.locate(TWO, Some(proxy.address.clone()));
    (one, proxy, host, two)
}

/// Reads to the end, or to an error; what came is in `whole` either way.
async fn read(bulk: &mut Bulk, whole: &mut Vec<u8>) -> Result<(), FetchError> {
    while let Some(piece) = bulk.next().await? {
        whole.extend_from_slice(&piece);
        assert_eq!(bulk.offset(), whole.len() as u64);
    }
    Ok(())
}

#[test]
fn a_file_comes_whole_from_any_place_on_from_disk_or_memory() {
    run(async {
        for (bytes, on_disk) in
            [(0, true), (1, false), (PIECE, true), (3 * PIECE + 5, false), (9 << 20, true)]
        {
            let expected = file(bytes);
            let (one, _proxy, _host, two) = nodes(Some(expected.clone()), on_disk, config(TWO)).await;
            for offset in [0, bytes / 3, bytes] {
                let mut bulk = one.fetch(TWO, NAME, offset as u64).await.unwrap();
                assert_eq!((bulk.total_bytes(), bulk.offset()), (bytes as u64, offset as u64));
                let mut whole = expected[..offset].to_vec();
                read(&mut bulk, &mut whole).await.unwrap();
                assert!(whole == expected, "{bytes} bytes from {offset}");
                assert_eq!(bulk.next().await, Ok(None));
            }
            let received = one.counters().bulk_received_bytes;
            until("the same count", || (two.counters().bulk_sent_bytes == received).then_some(())).await;
        }
    });
}

#[test]
fn a_transfer_that_breaks_goes_on_from_where_it_stopped() {
    run(async {
        let expected = file(6 << 20);
        let (one, proxy, _host, _two) = nodes(Some(expected.clone()), true, config(TWO)).await;
        let mut whole = Vec::new();
        proxy.break_after(1 << 20);
        let before = proxy.connections();
        loop {
            let result = match one.fetch(TWO, NAME, whole.len() as u64).await {
                Ok(mut bulk) => read(&mut bulk, &mut whole).await,
                Err(error) => Err(error),
            };
            match result {
                Ok(()) => break,
                Err(error) => assert!(error.worth_retrying(), "{error}"),
            }
        }
        assert!(whole == expected);
        assert!(proxy.connections() - before >= 6, "it broke {} times", proxy.connections() - before);
    });
}

#[test]
fn a_damaged_piece_is_noticed_and_never_handed_out() {
    run(async {
        let expected = file(4 << 20);
        let (one, proxy, _host, _two) = nodes(Some(expected.clone()), true, config(TWO)).await;
        proxy.damage_at(2 << 20);
        let mut whole = Vec::new();
        let mut bulk = one.fetch(TWO, NAME, 0).await.unwrap();
        let told = read(&mut bulk, &mut whole).await.unwrap_err();
        assert!(told.worth_retrying() && told.to_string().contains("checksum"), "{told}");
        assert!(!whole.is_empty() && whole == expected[..whole.len()]);
        proxy.damage_at(u64::MAX);
        let mut bulk = one.fetch(TWO, NAME, bulk.offset()).await.unwrap();
        read(&mut bulk, &mut whole).await.unwrap();
        assert!(whole == expected);
    });
}

#[test]
fn a_transfer_in_which_nothing_moves_is_given_up_on_both_ends() {
    run(async {
        let source = NetConfig { bulk_patience_ms: 500, bulk_streams_max: 1, ..config(TWO) };
        let (one, proxy, _host, _two) = nodes(Some(file(64 << 20)), false, source).await;
        let mut bulk = one.fetch(TWO, NAME, 0).await.unwrap();
        bulk.next().await.unwrap().unwrap();
        let busy = one.fetch(TWO, NAME, 0).await.unwrap_err();
        assert!(matches!(busy, FetchError::TurnedAway(Refusal::Busy(_))) && busy.worth_retrying(), "{busy}");
        proxy.hold(true);
        let mut whole = vec![0; bulk.offset() as usize];
        let told = read(&mut bulk, &mut whole).await.unwrap_err();
        assert!(matches!(&told, FetchError::Broken(why) if why.contains("1000 ms")), "{told}");
        proxy.hold(false);
        // The only place is free again, at the latest when the source loses its patience.
        let wait = async {
            while one.fetch(TWO, NAME, 0).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.unwrap();
    });
}

#[test]
fn what_cannot_be_had_is_told_with_the_reason() {
    run(async {
        let (one, _proxy, host, two) = nodes(None, false, config(TWO)).await;
        let digest = BulkName::Module(Digest::of(b"module"));
        let told = one.fetch(TWO, digest, 0).await.unwrap_err();
        assert!(matches!(&told, FetchError::Missing(why) if why.contains("Module(")), "{told}");
        assert!(!told.worth_retrying());
        *host.file.lock() = Some(file(10));
        let told = one.fetch(TWO, NAME, 11).await.unwrap_err();
        assert_eq!(told, FetchError::Offset { offset: 11, total_bytes: 10 });
        assert_eq!(one.fetch(NodeId(7), NAME, 0).await.unwrap_err(), FetchError::Unlocated(NodeId(7)));
        host.removed.lock().push(ONE);
        let told = one.fetch(TWO, NAME, 0).await.unwrap_err();
        assert!(matches!(told, FetchError::TurnedAway(Refusal::Removed(_))), "{told}");
        two.shutdown().await;
        assert!(one.fetch(TWO, NAME, 0).await.unwrap_err().worth_retrying());
    });
}

#[test]
fn all_files_together_keep_to_the_limit_and_messages_pass_them() {
    run(async {
        const RATE: u64 = 4 << 20;
        let bytes = 3 << 20;
        let source = NetConfig { bulk_bytes_per_s: RATE, ..config(TWO) };
        let (one, _proxy, _host, two) = nodes(Some(file(bytes)), true, source).await;
        two.locate(ONE, Some(one.advertised().to_owned()));
        connected(&two, ONE).await;
        let clock = Clock::start();
        let fetch = async || {
            let mut whole = Vec::new();
            read(&mut one.fetch(TWO, NAME, 0).await.unwrap(), &mut whole).await.unwrap();
            assert_eq!(whole.len(), bytes);
        };
        let asks = async {
            let mut answered = 0;
            while one.counters().bulk_received_bytes < 2 * bytes as u64 {
                one.ask(TWO, "x".into(), DEADLINE).await.unwrap();
                answered += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            answered
        };
        let ((), (), answered) = tokio::join!(fetch(), fetch(), asks);
        let took_ms = clock.now().monotonic_ms;
        // Without the bucket that is full at the beginning.
        let least_ms = (2 * bytes as u64 - RATE / 10 - 2 * PIECE as u64) * 1_000 / RATE;
        assert!(took_ms >= least_ms, "{took_ms} ms, at least {least_ms} expected");
        assert!(answered >= 5, "{answered} requests were answered meanwhile");
    });
}
