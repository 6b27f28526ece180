//! The machines of the gallery on three nodes, each a process: what a machine's `scenario.txt` tells, line by
//! line, at one node after the other, with the leader killed in the middle. In memory the same lines pass
//! through `module run`.

use std::time::{Duration, Instant};

use serde_json::Value;
use statehouse::trial::script::{Ending, Line, Said};

use super::killed::{Ports, ports, serve, start, wait_for_replicas};
use super::process::{Done, Node, component, directory, program, run_with};

/// How long the cluster may take for what it is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// The machine's name.
const MACHINE: &str = "tried";

fn scenario(guest: &str) -> String {
    let path = format!("{}/guests/{guest}/scenario.txt", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|why| panic!("{path}: {why}"))
}

/// Three nodes, at least two of which run.
pub struct Three {
    root: tempfile::TempDir,
    ports: [Ports; 3],
    nodes: Vec<Option<Node>>,
    turn: usize,
}

impl Three {
    fn start(component: &str, configuration: &str) -> Three {
        let (root, ports) = (directory(), [ports(), ports(), ports()]);
        let mut nodes = start(root.path(), 0..1, &ports);
        nodes.append(&mut start(root.path(), 1..3, &ports));
        let nodes: Vec<Option<Node>> = nodes.into_iter().map(Some).collect();
        let mut three = Three { root, ports, nodes, turn: 0 };
        let create = ["--timeout", "300", "machine", "create", MACHINE, "--init", configuration];
        let mut create = three.next().command(create.into_iter().chain(["--module", component]));
        // Compilers give way to everything else on the computer: this is bounded by its own time only.
        let created = create.output().expect("the program starts");
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
        wait_for_replicas(three.next(), MACHINE);
        three
    }

    /// One node after the other.
    fn next(&mut self) -> &Node {
        loop {
            self.turn = (self.turn + 1) % self.nodes.len();
            if self.nodes[self.turn].is_some() {
                return self.nodes[self.turn].as_ref().expect("it was just looked at");
            }
        }
    }

    /// Ends the node that leads the machine, as a crash would.
    fn kill_leader(&mut self) -> usize {
        let machine = self.next().run(["machine", "show", MACHINE, "--json"]).json();
        let logs = machine["replica_logs"].as_array().expect("each replica's log");
        let leader = logs.iter().find(|log| log["role"] == "leader").expect("one leads");
        let name = leader["name"].as_str().expect("a name");
        let number: usize = name.trim_start_matches('n').parse().expect("as it was started");
        self.nodes[number].take().expect("it runs").kill();
        number
    }

    fn begin_again(&mut self, number: usize) {
        self.nodes[number] = Some(Node::start(&mut serve(self.root.path(), number, &self.ports)));
    }

    /// All replicas have the same hash, and each node answers the question from its own state.
    fn stand_together(&mut self, question: &Sent, answer: &str) {
        let begun = Instant::now();
        // One that was down may be behind still.
        let verified = loop {
            let verified = self.next().run(["machine", "verify", MACHINE]);
            if verified.code == 0 || begun.elapsed() > PATIENCE {
                break verified;
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        assert_eq!(verified.ok().matches("in lockstep").count(), 3, "{verified:?}");
        for node in self.nodes.iter().flatten() {
            assert_eq!(question.to(node, &["--consistency", "local"]).ok(), answer, "{question:?}");
        }
    }
}

/// A command or a query as a line has it.
#[derive(Clone, Debug)]
struct Sent {
    word: &'static str,
    text: String,
    hex: bool,
}

impl Sent {
    fn of(word: &'static str, rest: &str) -> Sent {
        let (text, hex) = rest.strip_prefix("--hex ").map_or((rest, false), |digits| (digits, true));
        Sent { word, text: text.to_owned(), hex }
    }

    fn to(&self, node: &Node, more: &[&str]) -> Done {
        let mut command = node.command([self.word, MACHINE, "-"]);
        command.args(more).args(self.hex.then_some("--hex"));
        run_with(&mut command, self.text.as_bytes())
    }
}

/// A scenario on its way through a cluster.
struct Walk<'a> {
    three: &'a mut Three,
    said: Said,
    /// The last query that was answered, and the answer.
    asked: Option<(Sent, String)>,
    /// Lines that follow the one at hand and say what is expected of it.
    expected: usize,
}

impl Walk<'_> {
    fn line(&mut self, line: &str) -> Result<(), String> {
        let (ending, word, rest) = match Line::read(line) {
            Line::Nothing => return Ok(()),
            Line::Says(text) => return self.said.expect(text),
            Line::Command { ending, word, rest } => (ending, word, rest),
        };
        self.said.end()?;
        match word {
            "apply" => {
                let done = Sent::of("apply", rest).to(self.three.next(), &[]);
                self.ended(&done, ending)
            }
            "query" => self.query(rest, ending),
            "grant" => {
                let mut words = rest.split(' ');
                let mut arguments = vec!["grant", "--ttl", words.next().unwrap_or_default()];
                arguments.extend(words.flat_map(|id| ["--id", id]));
                self.lease(&arguments, ending)
            }
            "revoke" => self.lease(&["revoke", rest], ending),
            "advance" => self.wait(milliseconds(rest)),
            "events" => self.events(rest),
            _ => Err("this is not a line for a cluster".to_owned()),
        }
    }

    fn query(&mut self, rest: &str, ending: Ending) -> Result<(), String> {
        let question = Sent::of("query", rest);
        let done = question.to(self.three.next(), &[]);
        if ending == Ending::Done {
            self.asked = Some((question, done.ok().to_owned()));
        }
        self.ended(&done, ending)
    }

    fn lease(&mut self, arguments: &[&str], ending: Ending) -> Result<(), String> {
        let mut command = self.three.next().command(["lease", "--machine", MACHINE]);
        let done = run_with(command.args(arguments), b"");
        self.ended(&done, ending)
    }

    fn ended(&mut self, done: &Done, ending: Ending) -> Result<(), String> {
        let told = done.stderr.trim().trim_start_matches("error: ");
        let fits = match ending {
            Ending::Done => done.code == 0,
            Ending::Fails => done.code == 1,
            Ending::Refused(code) => {
                done.code == 1 && told.starts_with(&format!("refused with code {code}:"))
            }
        };
        if !fits {
            return Err(format!("{ending:?} is expected: {done:?}"));
        }
        match ending {
            Ending::Done => done.ok().split('\n').for_each(|line| self.said.say(line)),
            _ => self.said.say(told),
        }
        Ok(())
    }

    /// Time passes by itself: what has less to live is over then, as soon as the leader has seen to it.
    fn wait(&mut self, ms: u64) -> Result<(), String> {
        let list = ["lease", "--machine", MACHINE, "list", "--json"];
        let leases = |three: &mut Three| -> Vec<Value> {
            three.next().run(list).json().as_array().expect("a list").clone()
        };
        let over: Vec<Value> = leases(self.three)
            .into_iter()
            .filter(|lease| lease["remaining_ms"].as_u64() <= Some(ms))
            .collect();
        let begun = Instant::now();
        std::thread::sleep(Duration::from_millis(ms));
        let lives = |three: &mut Three| {
            leases(three).iter().any(|lease| over.iter().any(|ended| ended["id"] == lease["id"]))
        };
        while lives(self.three) {
            if begun.elapsed() > PATIENCE {
                return Err(format!("these leases do not end: {over:?}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// What watchers see from a revision on, at a node that serves it from its own history.
    fn events(&mut self, from: &str) -> Result<(), String> {
        let count = self.expected.to_string();
        let done = self.three.next().run(["watch", MACHINE, "--from", from, "--limit", &count]);
        self.ended(&done, Ending::Done)
    }
}

fn milliseconds(time: &str) -> u64 {
    let (number, unit) = match time.strip_suffix("ms") {
        Some(number) => (number, 1),
        None => (time.strip_suffix('s').expect("seconds or milliseconds"), 1_000),
    };
    number.parse::<u64>().expect("a number") * unit
}

/// Follows a scenario to its end. The leader is killed before its middle line, and comes back at the end.
fn follow(three: &mut Three, scenario: &str) {
    let lines: Vec<&str> = scenario.lines().collect();
    let mut killed = None;
    let mut walk = Walk { three, said: Said::default(), asked: None, expected: 0 };
    for (at, line) in lines.iter().enumerate() {
        let is_command = matches!(Line::read(line), Line::Command { .. });
        if is_command && killed.is_none() && at >= lines.len() / 2 {
            killed = Some(walk.three.kill_leader());
        }
        let following = lines[at + 1..].iter().take_while(|line| matches!(Line::read(line), Line::Says(_)));
        walk.expected = following.count();
        walk.line(line).unwrap_or_else(|why| panic!("line {}, {line:?}: {why}", at + 1));
    }
    walk.said.end().expect("all was expected");
    let (query, answer) = walk.asked.expect("a scenario asks something");
    three.begin_again(killed.expect("there was a middle"));
    three.stand_together(&query, &answer);
}

/// The scenario in memory, then on three nodes.
pub fn plays(guest: &str, component: &str, configuration: &str) -> Three {
    let scenario = scenario(guest);
    let mut command = program();
    command.args(["module", "run", component, "--argument", configuration]);
    let done = run_with(&mut command, scenario.as_bytes());
    assert_eq!(done.code, 0, "in memory: {done:?}");
    let mut three = Three::start(component, configuration);
    follow(&mut three, &scenario);
    three
}

#[test]
fn the_key_value_machine_plays_its_scenario_on_three_nodes() {
    plays("kv", &component("kv"), "");
}

#[test]
fn the_rate_limiter_plays_its_scenario_on_three_nodes() {
    plays("limiter", &component("limiter"), "");
}

#[test]
fn the_order_book_plays_its_scenario_on_three_nodes() {
    plays("orders", &component("orders"), "");
}

#[test]
fn the_notes_play_their_scenario_on_three_nodes() {
    plays("notes", &component("notes"), "eggs=six");
}

#[test]
fn the_counter_in_rust_plays_its_scenario_on_three_nodes() {
    plays("counter", &component("counter"), "40");
}

fn the_counter_plays(language: &str, world: &str) {
    let directory = directory();
    plays("counter", &super::languages::built(directory.path(), language, world), "40");
}

#[test]
fn the_counter_in_c_plays_the_same_scenario_on_three_nodes() {
    the_counter_plays("c", "stored");
    the_counter_plays("c", "resident");
}

#[test]
#[ignore = "takes Zig: make test-guests"]
fn the_counter_in_zig_plays_the_same_scenario_on_three_nodes() {
    the_counter_plays("zig", "stored");
    the_counter_plays("zig", "resident");
}

#[test]
#[ignore = "takes Go: make test-guests"]
fn the_counter_in_go_plays_the_same_scenario_on_three_nodes() {
    the_counter_plays("go", "stored");
    the_counter_plays("go", "resident");
}

// The components of the slower compilers differ by little else than the world: one of each, to save minutes.

#[test]
#[ignore = "takes componentize-js: make test-guests"]
fn the_counter_in_javascript_plays_the_same_scenario_on_three_nodes() {
    the_counter_plays("js", "stored");
}

#[test]
#[ignore = "takes componentize-js and TypeScript: make test-guests"]
fn the_counter_in_typescript_plays_the_same_scenario_on_three_nodes() {
    the_counter_plays("ts", "resident");
}

#[test]
#[ignore = "takes componentize-py: make test-guests"]
fn the_counter_in_python_plays_the_same_scenario_on_three_nodes() {
    the_counter_plays("python", "stored");
}

/// A worker whose answer was lost sends its completion again, to other nodes and past the leader's death: it
/// counts once.
#[test]
fn the_job_queue_plays_its_scenario_and_a_completion_that_is_sent_again_counts_once() {
    let mut three = plays("queue", &component("queue"), "");
    let counted = |node: &Node| node.run(["query", MACHINE, "{}"]).ok().to_owned();
    three.next().run(["apply", MACHINE, r#"{"add": {"body": "mail to dora"}}"#]).ok();
    let session = three.next().run(["session", "open", "--ttl", "1h", "--machine", MACHINE]);
    let session = session.ok().to_owned();
    let numbered = |node: &Node, number: &str, command: &str| {
        node.run(["apply", MACHINE, command, "--session", &session, "--number", number, "--json"]).json()
    };
    let take = r#"{"take": {"visible_after_ms": 3600000}}"#;
    let taken = numbered(three.next(), "1", take);
    let job: Value = serde_json::from_str(taken["ok"].as_str().expect("an answer")).expect("JSON");
    let complete = format!(r#"{{"complete": {{"job": {}, "receipt": {}}}}}"#, job["job"], job["receipt"]);
    let completed = numbered(three.next(), "2", &complete);
    assert_eq!(completed["ok"], "", "{completed}");
    let killed = three.kill_leader();
    for _ in 0..2 {
        assert_eq!(numbered(three.next(), "1", take), taken, "the same job, not the next one");
        assert_eq!(numbered(three.next(), "2", &complete), completed);
    }
    assert!(numbered(three.next(), "3", &complete)["refused"]["code"] == 2, "anew it is refused");
    three.begin_again(killed);
    let told = counted(three.next());
    assert_eq!(told, r#"{"added":4,"completed":3,"waiting":0}"#);
    three.stand_together(&Sent::of("query", "{}"), &told);
}
