//! The load of the benches that go over the network: puts of 256 bytes and point reads of the kv machine, one
//! a call and many on a stream.
#![allow(dead_code, reason = "each bench uses its part")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use statehouse::client::Client;
use statehouse::machine::outcome::Outcome;
use statehouse::node::request::Consistency;
use statehouse_kv::Call;
use statehouse_kv::messages::{PutRequest, RangeRequest};

/// What is loaded.
pub trait Target {
    /// A new connection.
    fn client(&self) -> Client;
    /// Processor time that its processes have used so far.
    fn cpu_us(&self) -> u64;
}

const KEYS: u64 = 10_000;
const VALUE_BYTES: usize = 256;
/// Puts before the first line: a node lays out its log's files in its first seconds.
const WARM_UP: Duration = Duration::from_secs(3);
/// Clients that share a connection.
const CLIENTS_PER_CONNECTION: usize = 10;

fn key(number: u64) -> Vec<u8> {
    format!("key{:05}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % KEYS).into_bytes()
}

fn put(number: u64) -> Bytes {
    PutRequest { key: key(number), value: vec![b'v'; VALUE_BYTES], ..Default::default() }.to_envelope().into()
}

fn get(number: u64) -> Bytes {
    RangeRequest { key: key(number), ..Default::default() }.to_envelope().into()
}

/// Whether a run writes or reads.
#[derive(Clone, Copy)]
pub enum Kind {
    Put,
    Get,
}

pub async fn one(client: &Client, kind: Kind, number: u64) {
    let outcome = match kind {
        Kind::Put => client.apply("kv", put(number)).await.expect("applied").outcome,
        Kind::Get => {
            client.query("kv", get(number), Consistency::Linearizable).await.expect("answered").outcome.into()
        }
    };
    assert!(matches!(outcome, Outcome::Ok(_)), "{outcome:?}");
}

/// So many clients, each with one request at a time. Returns the time that each request took.
pub async fn unary(target: &impl Target, kind: Kind, clients: usize, time: Duration) -> Vec<u32> {
    let connections: Vec<Client> =
        (0..clients.div_ceil(CLIENTS_PER_CONNECTION)).map(|_| target.client()).collect();
    let end = Instant::now() + time;
    let tasks: Vec<_> = (0..clients)
        .map(|number| {
            let client = connections[number % connections.len()].clone();
            tokio::spawn(async move {
                let (mut took, mut at) = (Vec::new(), number as u64 * 7_919);
                while Instant::now() < end {
                    let begun = Instant::now();
                    one(&client, kind, at).await;
                    took.push(begun.elapsed().as_micros() as u32);
                    at += 1;
                }
                took
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.expect("a client does not panic"));
    }
    all
}

/// One stream with so many requests under way.
pub async fn stream(target: &impl Target, kind: Kind, under_way: usize, time: Duration) -> Vec<u32> {
    let client = target.client();
    let mut began = vec![Instant::now(); under_way];
    let mut took = Vec::new();
    let end = Instant::now() + time;
    let mut at = 0;
    macro_rules! drive {
        ($sender:ident, $answers:ident, $send:expr) => {{
            let send = $send;
            for slot in 0..under_way {
                began[slot] = Instant::now();
                send(slot as u64, at).await;
                at += 1;
            }
            while let Some((slot, result)) = $answers.next().await.expect("the stream goes on") {
                assert!(matches!(Outcome::from(result.expect("done").outcome), Outcome::Ok(_)));
                took.push(began[slot as usize].elapsed().as_micros() as u32);
                if Instant::now() >= end {
                    break;
                }
                began[slot as usize] = Instant::now();
                send(slot, at).await;
                at += 1;
            }
        }};
    }
    match kind {
        Kind::Put => {
            let (sender, mut answers) = client.apply_stream().await.expect("a stream");
            drive!(sender, answers, async |id, at| sender.send(id, "kv", put(at)).await.expect("sent"));
        }
        Kind::Get => {
            let (sender, mut answers) = client.query_stream().await.expect("a stream");
            drive!(sender, answers, async |id, at| {
                let fresh = Consistency::Linearizable;
                sender.send(id, "kv", get(at), fresh).await.expect("sent");
            });
        }
    }
    took
}

/// One line of the table.
pub fn report(what: &str, target: &impl Target, cpu_before_us: u64, time: Duration, mut took_us: Vec<u32>) {
    took_us.sort_unstable();
    let count = took_us.len();
    let at = |share: f64| f64::from(took_us[(share * (count - 1) as f64) as usize]) / 1_000.0;
    let cpu_us = (target.cpu_us() - cpu_before_us) as f64 / count as f64;
    println!(
        "{what:<34} {:>9.0}/s   p50 {:>7.2} ms   p99 {:>7.2} ms   servers' CPU {cpu_us:>5.1} us each",
        count as f64 / time.as_secs_f64(),
        at(0.5),
        at(0.99),
    );
}

/// Seconds and words of the command line.
pub fn arguments() -> (Duration, Option<String>) {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let seconds = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(5);
    let words = arguments.into_iter().find(|argument| argument.parse::<u64>().is_err());
    (Duration::from_secs(seconds), words)
}

/// Puts for a few seconds, which nobody measures.
pub async fn warm_up(target: &impl Target) {
    let (client, begun) = (target.client(), Instant::now());
    for number in 0.. {
        one(&client, Kind::Put, number).await;
        if begun.elapsed() >= WARM_UP {
            break;
        }
    }
}

/// Prints the lines that contain the words: each kind of request, from so many clients, and so many under way
/// on one stream.
pub async fn lines(
    target: &impl Target,
    clients: &[usize],
    under_way: &[usize],
    (time, words): (Duration, Option<&str>),
) {
    let wanted = |line: &str| words.is_none_or(|words| line.contains(words));
    for (kind, name) in [(Kind::Put, "put"), (Kind::Get, "linearizable read")] {
        for &clients in clients {
            let line = format!("{name}, calls of {clients} clients");
            if wanted(&line) {
                let before = target.cpu_us();
                let took = unary(target, kind, clients, time).await;
                report(&line, target, before, time, took);
            }
        }
        for &under_way in under_way {
            let line = format!("{name}, stream, {under_way} under way");
            if wanted(&line) {
                let before = target.cpu_us();
                let took = stream(target, kind, under_way, time).await;
                report(&line, target, before, time, took);
            }
        }
    }
}
