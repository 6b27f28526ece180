//! Statehouse and etcd, one after the other on this computer, under the same load from the same generator:
//! etcd's own API, one node and three, every disk synced. One command that gets etcd and prints the table:
//!
//!     cargo bench --profile release --bench versus_etcd -- [SECONDS] [WORDS]
//!
//! Servers and generator share the processors, so the ratios say more than the figures.

#[path = "versus_etcd/rows.rs"]
mod rows;
#[path = "versus_etcd/servers.rs"]
mod servers;

use std::time::Duration;

use rows::{Figures, Kind, ROWS};
use servers::Servers;

/// Puts before the first row: both lay out their files in their first seconds.
const WARM_UP: Duration = Duration::from_secs(3);

/// The nodes of each part of the table.
const SIZES: [usize; 2] = [1, 3];

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let seconds = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(10);
    let words = arguments.into_iter().find(|argument| argument.parse::<u64>().is_err()).unwrap_or_default();
    for nodes in SIZES {
        let etcd = measure(Servers::etcd(nodes).await, seconds, &words).await;
        let ours = measure(Servers::statehouse(nodes).await, seconds, &words).await;
        println!("\n{nodes} node(s)                     requests/s; p50/p99 ms; servers' CPU us each");
        for ((row, etcd), (_, ours)) in etcd.iter().zip(&ours) {
            let [rate, p50, p99, cpu] = ratios(etcd, ours);
            let rate = if rate.is_nan() { "-".to_owned() } else { format!("{rate:.2}") };
            println!(
                "{row:<28} etcd {}   statehouse {}   x {rate:>4}; {p50:.2}/{p99:.2}; {cpu:.2}",
                shown(etcd),
                shown(ours)
            );
        }
    }
}

/// How many times better than etcd: more requests, less time, less of the processors.
fn ratios(etcd: &Figures, ours: &Figures) -> [f64; 4] {
    [
        ours.per_second / etcd.per_second,
        etcd.p50_ms / ours.p50_ms,
        etcd.p99_ms / ours.p99_ms,
        etcd.cpu_us_each / ours.cpu_us_each,
    ]
}

fn shown(figures: &Figures) -> String {
    let Figures { per_second, p50_ms, p99_ms, cpu_us_each } = figures;
    let rate = if per_second.is_nan() { "-".to_owned() } else { format!("{per_second:.0}") };
    format!("{rate:>8}; {p50_ms:>6.2}/{p99_ms:>7.2}; {cpu_us_each:>6.1}")
}

/// All rows that contain the words.
async fn measure(servers: Servers, seconds: u64, words: &str) -> Vec<(&'static str, Figures)> {
    let time = Duration::from_secs(seconds);
    rows::requests(&servers, Kind::Put, (1, 10), WARM_UP).await;
    let mut measured = Vec::new();
    for (row, kind, connections, clients) in ROWS {
        if row.contains(words) {
            measured.push((row, rows::requests(&servers, kind, (connections, clients), time).await));
        }
    }
    if "keep-alives, one stream".contains(words) {
        measured.push(("keep-alives, one stream", rows::kept_alive(&servers, time).await));
    }
    if "watch, 1000 watchers".contains(words) {
        measured.push(("watch, 1000 watchers", rows::watched(&servers).await));
    }
    if "lease ends, lateness".contains(words) {
        // Their number is given: only the times compare.
        let ended = rows::ended(&servers).await;
        measured.push(("lease ends, lateness", Figures { per_second: f64::NAN, ..ended }));
    }
    eprintln!("{} measured", servers.name);
    measured
}
