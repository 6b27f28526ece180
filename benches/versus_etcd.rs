//! Statehouse and etcd, one after the other on this computer, under the same load from the same generator:
//! etcd's own API, one node and three, every disk synced. One command that gets etcd and prints the table:
//!
//!     tests/etcd/install go && cargo bench --profile release --bench versus_etcd -- [SECONDS] [WORDS]
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
            let ratio = ours.per_second / etcd.per_second;
            println!("{row:<28} etcd {}   statehouse {}   x {ratio:.2}", shown(etcd), shown(ours));
        }
    }
}

fn shown(figures: &Figures) -> String {
    let Figures { per_second, p50_ms, p99_ms, cpu_us_each } = figures;
    format!("{per_second:>8.0}; {p50_ms:>6.2}/{p99_ms:>7.2}; {cpu_us_each:>6.1}")
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
    eprintln!("{} measured", servers.name);
    measured
}
