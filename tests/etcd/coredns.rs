//! CoreDNS, unmodified, with its zone in etcd's keys: what people run on etcd. A zone is written with
//! etcdctl, and asked for by DNS.
//!
//! Promises: every answer is compared as a whole (code, and all records of all sections with their times to
//! live), and nothing is asked a second time.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, UdpSocket};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use super::etcdctl::etcdctl;
use super::server::{Server, tool, tools};
use super::three::{Three, wait_until};

/// A resolver's time to live of a record of no lease, as CoreDNS has it.
const TTL_S: u32 = 300;

/// What CoreDNS is told to make of a lease: more than any lease here lasts, so that it is always this.
const LEASED_TTL_S: u32 = 3_600;

/// CoreDNS at work, killed when it is dropped.
struct CoreDns {
    port: u16,
    child: Child,
    directory: TempDir,
}

impl CoreDns {
    /// Starts it on etcd's endpoints, with a zone and a reverse one.
    fn start(endpoints: &[String]) -> CoreDns {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let port = free_port();
        let endpoints = endpoints.iter().map(|endpoint| format!(" http://{endpoint}")).collect::<String>();
        let file = directory.path().join("Corefile");
        let text = format!(
            ".:{port} {{
    bind 127.0.0.1
    etcd skydns.local 10.0.0.0/24 {{
        path /skydns
        endpoint{endpoints}
        min-lease-ttl {LEASED_TTL_S}
        max-lease-ttl 2h
    }}
    errors
}}
"
        );
        fs::write(&file, text).expect("a new file");
        let log = |name: &str| File::create(directory.path().join(name)).expect("a new file");
        let mut command = Command::new(tool("coredns"));
        command.arg("-conf").arg(&file).stdin(Stdio::null()).stdout(log("stdout")).stderr(log("stderr"));
        let child = command.spawn().expect("CoreDNS starts");
        let mut dns = CoreDns { port, child, directory };
        wait_until("CoreDNS listens", || {
            assert!(dns.child.try_wait().expect("our own child").is_none(), "it ended: {}", dns.log());
            dns.log().contains("linux/")
        });
        dns
    }

    fn log(&self) -> String {
        let read = |name| fs::read_to_string(self.directory.path().join(name)).unwrap_or_default();
        read("stdout") + &read("stderr")
    }
}

impl Drop for CoreDns {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nothing listens on, by TCP or UDP.
fn free_port() -> u16 {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = tcp.local_addr().expect("it is bound");
        if UdpSocket::bind(address).is_ok() {
            return address.port();
        }
    }
}

/// Asks by DNS, with a resolver of others.
struct Resolver {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Resolver {
    fn of(dns: &CoreDns) -> Resolver {
        let mut command = Command::new(tools().join("python/bin/python"));
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/etcd/python/ask.py"));
        command.args(["127.0.0.1", &dns.port.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("Python starts");
        let questions = child.stdin.take().expect("piped");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        Resolver { child, questions, answers }
    }

    /// The answer to a name and a type. The resolver bounds how long it waits.
    fn ask(&mut self, question: &str) -> String {
        writeln!(self.questions, "{question}").expect("it reads");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("it writes");
        let answer = line.trim_end().strip_prefix(question).map(str::trim_start);
        answer.unwrap_or_else(|| panic!("no answer to {question}: {line:?}")).to_owned()
    }

    /// Asks for the addresses of a name that has just these.
    #[track_caller]
    fn finds(&mut self, name: &str, addresses: &[&str]) {
        assert_eq!(self.ask(&format!("{name}.skydns.local A")), addresses_of(name, addresses));
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer of addresses, sorted.
fn addresses_of(name: &str, addresses: &[&str]) -> String {
    let record = |address: &&str| format!("{name}.skydns.local. {TTL_S} A {address}");
    format!("NOERROR [{}] [] []", addresses.iter().map(record).collect::<Vec<_>>().join(", "))
}

/// Puts a record where CoreDNS looks for it: `local/skydns/NAME`.
fn put(endpoints: &[String], key: &str, record: &str) {
    etcdctl(endpoints, &["put", &format!("/skydns/{key}"), record]).ok();
}

/// The zone at first: all kinds of records, a name below another, an alias, a name that is an address' alone,
/// and a record that no JSON is.
const ZONE: [(&str, &str); 16] = [
    ("local/skydns/dns/ns/one", r#"{"host":"10.0.0.10"}"#),
    ("local/skydns/dns/apex/x", r#"{"host":"10.0.0.9","ttl":60}"#),
    ("local/skydns/web/a", r#"{"host":"10.0.0.1"}"#),
    ("local/skydns/web/b", r#"{"host":"10.0.0.2"}"#),
    ("local/skydns/web/c", r#"{"host":"2001:db8::1","ttl":30}"#),
    ("local/skydns/web/deep/down", r#"{"host":"10.0.0.4"}"#),
    ("local/skydns/db/one", r#"{"host":"10.0.0.5","port":5432,"priority":10,"weight":60}"#),
    ("local/skydns/db/two", r#"{"host":"web.skydns.local","port":5433,"priority":20}"#),
    ("local/skydns/mail/in", r#"{"host":"10.0.0.6","mail":true,"priority":5}"#),
    ("local/skydns/note", r#"{"text":"kept in a state machine","ttl":10}"#),
    ("local/skydns/alias", r#"{"host":"web.skydns.local"}"#),
    ("local/skydns/group/1", r#"{"host":"10.0.0.7","group":"g1"}"#),
    ("local/skydns/group/2", r#"{"host":"10.0.0.8","group":"g2"}"#),
    ("local/skydns/broken", "no JSON"),
    ("arpa/in-addr/10/0/0/127", r#"{"host":"reverse.skydns.local."}"#),
    ("local/skydns/reverse", r#"{"host":"10.0.0.127"}"#),
];

/// What is asked of it, with a part that the answer must have: an answer that says nothing would be the same
/// from both.
const QUESTIONS: [(&str, &str); 24] = [
    ("skydns.local SOA", "ns.dns.skydns.local."),
    ("skydns.local NS", "NS one.ns.dns.skydns.local."),
    ("skydns.local A", "60 A 10.0.0.9"),
    ("web.skydns.local A", "web.skydns.local. 300 A 10.0.0.2"),
    ("web.skydns.local AAAA", "30 AAAA 2001:db8::1"),
    ("WEB.SkyDNS.Local A", "A 10.0.0.1"),
    ("a.web.skydns.local A", "[a.web.skydns.local. 300 A 10.0.0.1] [] []"),
    ("deep.web.skydns.local A", "[deep.web.skydns.local. 300 A 10.0.0.4] [] []"),
    ("a.web.skydns.local AAAA", "NOERROR [] [skydns.local. 30 SOA"),
    ("*.web.skydns.local A", "A 10.0.0.2"),
    ("db.skydns.local SRV", "SRV 10 100 5432 one.db.skydns.local."),
    ("two.db.skydns.local SRV", "5433 web.skydns.local."),
    ("any.db.skydns.local SRV", "5432"),
    ("mail.skydns.local MX", "MX 5 in.mail.skydns.local."),
    ("note.skydns.local TXT", r#"10 TXT "kept in a state machine""#),
    ("alias.skydns.local A", "CNAME web.skydns.local."),
    ("alias.skydns.local CNAME", "CNAME web.skydns.local."),
    ("group.skydns.local A", "A 10.0.0.7"),
    ("broken.skydns.local A", "SERVFAIL"),
    ("absent.skydns.local A", "NXDOMAIN [] [skydns.local. 30 SOA"),
    ("we.skydns.local A", "NXDOMAIN"),
    ("127.0.0.10.in-addr.arpa PTR", "PTR reverse.skydns.local."),
    ("126.0.0.10.in-addr.arpa PTR", "NXDOMAIN"),
    ("elsewhere.example A", "SERVFAIL"),
];

/// What then becomes of the zone, and what is asked after it.
const CHANGES: [(&[&str], &str, &str); 7] = [
    (
        &["put", "/skydns/local/skydns/web/a", r#"{"host":"10.0.0.11"}"#],
        "a.web.skydns.local A",
        "[a.web.skydns.local. 300 A 10.0.0.11]",
    ),
    (&["del", "/skydns/local/skydns/web/b"], "web.skydns.local A", "A 10.0.0.11"),
    (&["del", "/skydns/local/skydns/web/", "--prefix"], "web.skydns.local A", "NXDOMAIN"),
    (&["del", "/skydns/local/skydns/db/two"], "db.skydns.local SRV", "5432"),
    (
        &["put", "/skydns/local/skydns/broken", r#"{"host":"10.0.0.12"}"#],
        "broken.skydns.local A",
        "A 10.0.0.12",
    ),
    (&["del", "/skydns/arpa/", "--prefix"], "127.0.0.10.in-addr.arpa PTR", "NXDOMAIN"),
    (&["del", "/skydns/", "--prefix"], "skydns.local A", "NXDOMAIN"),
];

/// A CoreDNS on each of two servers, and what they answered differently.
struct Pair {
    endpoints: [[String; 1]; 2],
    resolvers: [Resolver; 2],
    differences: Vec<String>,
}

impl Pair {
    fn both(&self, arguments: &[&str]) {
        for endpoints in &self.endpoints {
            etcdctl(endpoints, arguments).ok();
        }
    }

    fn ask(&mut self, question: &str, part: &str) {
        let [first, second] = &mut self.resolvers;
        let (first, second) = (first.ask(question), second.ask(question));
        if first != second || !second.contains(part) {
            self.differences.push(format!(
                "{question}, due: {part}\n  on the first:  {first}\n  on the second: {second}"
            ));
        }
    }

    /// A record of a lease lives as long as CoreDNS is told to say, and no longer than the lease.
    fn leased(&mut self) {
        for endpoints in &self.endpoints {
            for (seconds, name) in [("600", "long"), ("2", "short")] {
                let granted = etcdctl(endpoints, &["lease", "grant", seconds]);
                let lease = granted.ok().split(' ').nth(1).expect("lease ID granted with TTL(600s)");
                let key = format!("/skydns/local/skydns/{name}");
                etcdctl(endpoints, &["put", &key, r#"{"host":"10.0.0.13"}"#, "--lease", lease]).ok();
            }
        }
        self.ask("long.skydns.local A", &format!("[long.skydns.local. {LEASED_TTL_S} A 10.0.0.13]"));
        for resolver in &mut self.resolvers {
            wait_until("a record ends with its lease", || {
                resolver.ask("short.skydns.local A").starts_with("NXDOMAIN")
            });
        }
        self.ask("long.skydns.local A", "NOERROR");
    }
}

/// What CoreDNS on two servers answered differently, or not as is due.
pub fn differences(first: &Server, second: &Server) -> Vec<String> {
    let endpoints = [first, second].map(|server| [server.address.clone()]);
    for endpoints in &endpoints {
        for (key, record) in ZONE {
            put(endpoints, key, record);
        }
    }
    let dns = endpoints.each_ref().map(|endpoints| CoreDns::start(endpoints));
    let mut pair = Pair { resolvers: dns.each_ref().map(Resolver::of), endpoints, differences: Vec::new() };
    for (question, part) in QUESTIONS {
        pair.ask(question, part);
    }
    pair.leased();
    for (arguments, question, part) in CHANGES {
        pair.both(arguments);
        pair.ask(question, part);
    }
    pair.differences
}

/// Questions that are asked while each node is away, at least.
const QUESTIONS_EACH: usize = 20;

/// Each of three nodes is killed once and comes back, under questions without a pause: all of them are
/// answered, also by what was written while a node was away.
pub fn nobody_misses_a_killed_node() {
    let mut three = Three::start();
    let endpoints = three.endpoints();
    put(&endpoints, "local/skydns/always", r#"{"host":"10.0.0.1"}"#);
    let dns = CoreDns::start(&endpoints);
    let mut resolver = Resolver::of(&dns);
    resolver.finds("always", &["10.0.0.1"]);

    let (done, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let answers = thread::scope(|scope| {
        let asking = scope.spawn(|| ask_until(&dns, &done, &asked));
        let killing = scope.spawn(|| kill_each(&mut three, &mut resolver, &asked));
        let killed = killing.join();
        done.store(true, Ordering::Relaxed);
        let answers = asking.join().expect("the resolver does not panic");
        killed.unwrap_or_else(|why| std::panic::resume_unwind(why));
        answers
    });
    let due = addresses_of("always", &["10.0.0.1"]);
    let others: Vec<_> = answers.iter().enumerate().filter(|(_, answer)| **answer != due).collect();
    println!("{} questions, {} of them answered otherwise: {others:?}", answers.len(), others.len());
    assert!(answers.len() >= 3 * QUESTIONS_EACH, "only {} questions were asked", answers.len());
    assert!(others.is_empty(), "of {} answers: {others:?}\n{}", answers.len(), dns.log());
}

/// The answers to one question, until it is done.
fn ask_until(dns: &CoreDns, done: &AtomicBool, asked: &AtomicUsize) -> Vec<String> {
    let mut resolver = Resolver::of(dns);
    let mut answers = Vec::new();
    while !done.load(Ordering::Relaxed) {
        answers.push(resolver.ask("always.skydns.local A"));
        asked.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(20));
    }
    answers
}

fn kill_each(three: &mut Three, resolver: &mut Resolver, asked: &AtomicUsize) {
    for node in 0..3 {
        three.kill(node);
        let due = asked.load(Ordering::Relaxed) + QUESTIONS_EACH;
        let left: Vec<String> = (0..3).filter(|left| *left != node).map(|left| three.etcd(left)).collect();
        let (name, address) = (format!("without{node}"), format!("10.0.0.{}", 100 + node));
        put(&left[..1], &format!("local/skydns/{name}"), &format!(r#"{{"host":"{address}"}}"#));
        resolver.finds(&name, &[&address]);
        etcdctl(&left[1..], &["del", &format!("/skydns/local/skydns/{name}")]).ok();
        assert!(resolver.ask(&format!("{name}.skydns.local A")).starts_with("NXDOMAIN"));
        wait_until("questions were asked without the node", || asked.load(Ordering::Relaxed) >= due);
        three.come_back(node);
        three.agree();
        // The one that came back serves: CoreDNS goes on asking all of them.
        put(&[three.etcd(node)], &format!("local/skydns/{name}"), r#"{"host":"10.0.0.99"}"#);
        resolver.finds(&name, &["10.0.0.99"]);
    }
}
