//! Components tried on the command line, without a node: `module run` and `module check`.

use serde_json::{Value, json};

use super::process::{Done, component, program, run_with};

fn run(guest: &str, arguments: &[&str], script: &str) -> Done {
    let mut command = program();
    command.args(["module", "run", &component(guest)]).args(arguments);
    run_with(&mut command, script.as_bytes())
}

fn lines(done: &Done) -> Vec<Value> {
    done.ok().lines().map(|line| serde_json::from_str(line).expect("a JSON value a line")).collect()
}

#[test]
fn a_script_runs_on_a_machine_in_memory() {
    let script = "
        # A note, and another one.
        apply milk=two pints
        watch e
        apply --hex 656767733d736978
        !apply nonsense
        query eggs
        query --hex 6d696c6b
        snapshot before
        apply milk=
        !query milk
        restore before
        query milk
        state m
        events 3
        !restore nothing
        quit
        apply nobody=reads=this";
    let done = run("notes", &["--argument", "a=b"], script);
    assert_eq!(
        done.ok(),
        "two pints\n4\tput\teggs\tsix\n736978\nsix\n74776f2070696e7473\nindex 4: 6 rows, 0 bytes of its \
         own\ntwo pints\nmilk\ttwo pints\n3\tput\tmilk\ttwo pints\n4\tput\teggs\tsix"
    );
    for part in ["NAME=TEXT is expected", "there is no such note", "[\"before\"]"] {
        assert!(done.stderr.contains(part), "{part:?} is not in {}", done.stderr);
    }
}

#[test]
fn a_resident_machine_keeps_time_leases_and_snapshots() {
    let script = "apply 2\ngrant 10s\nadvance 4s\nleases\nrenew 1\nadvance 9s\nsnapshot\nadvance 1m\n\
        apply 1\nrestore\nquery x\nleases\nrevoke 1\nleases\nhash\n";
    let done = run("counter", &["--init", "40", "--json"], script);
    let lines = lines(&done);
    assert_eq!(lines[0]["ok"], "42");
    assert_eq!(lines[1], json!({ "id": 1, "ttl_ms": 10_000 }));
    assert_eq!(lines[2], json!({ "time_ms": 1_767_225_604_000u64, "ended": [] }));
    assert_eq!(lines[3][0]["remaining_ms"], 6_000);
    assert_eq!(lines[4]["ttl_ms"], 10_000);
    assert_eq!(lines[5]["ended"], json!([]));
    assert_eq!(lines[6]["state_bytes"], 8);
    assert_eq!(lines[7]["ended"], json!([{ "id": 1, "time_ms": 1_767_225_614_000u64 }]));
    assert_eq!((&lines[8]["ok"], &lines[9]["ok"]), (&json!("43"), &json!("42")));
    assert_eq!((&lines[10][0]["id"], &lines[10][0]["kind"]), (&json!(1), &json!("client")));
    assert_eq!(lines[11], json!([]));
    // The counter tells the sum at its creation and after the command. The client's lease held nothing.
    assert_eq!(lines[12]["revision"], 3);

    let again = run("counter", &["--init", "40", "--json"], script);
    assert_eq!(again.stdout, done.stdout, "the same script gives the same answers, hash and all");
}

#[test]
fn the_first_line_that_fails_ends_a_script() {
    let failed = run("notes", &[], "apply a=b\nquery a\nquery b\napply c=d\n");
    assert_eq!((failed.code, failed.text()), (1, "b\nb\n"));
    for part in ["line 3", "query b", "there is no such note"] {
        assert!(failed.stderr.contains(part), "{part:?} is not in {}", failed.stderr);
    }
    let done = run("notes", &[], "apply a=b\n!query a\n");
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("it was to fail"), "{done:?}");
    let unknown = run("notes", &[], "!aply a=b\n");
    assert_eq!(
        unknown.code, 2,
        "a line that is not understood does not count as one that fails: {unknown:?}"
    );
    let shown = run("notes", &["--json"], "query b\n");
    assert_eq!((shown.code, &shown.json()["refused"]["code"]), (1, &json!(2)));
}

#[test]
fn a_script_says_what_the_machine_is_to_say() {
    let script = "watch\napply a=b\n= 2 put a b\n= b\n!1 apply what\n= refused with code 1: NAME=TEXT is \
        expected, with a name of 1 to 1000 bytes\nquery a\n= b\napply a=\n= 3 delete a\n=\n";
    run("notes", &[], script).ok();
    run("notes", &["--json"], script).ok();
    for (script, parts) in [
        ("apply a=b\n= c\n", ["line 2", "\"c\" is expected", "\"b\""]),
        ("apply a=b\n= b\n= c\n", ["line 3", "\"c\" is expected", "nothing more"]),
        ("watch\napply a=b\n= 2 put a b\nquery a\n", ["line 4", "said more", "\"b\""]),
        ("watch\napply a=b\n= 2 put a b\n", ["at the end", "said more", "\"b\""]),
        ("!2 apply what\n", ["line 1", "to be refused with code 2", "refused with code 1"]),
        ("!1 apply a=b\n", ["line 1", "it was to fail", "done"]),
    ] {
        let failed = run("notes", &[], script);
        assert_eq!(failed.code, 1, "{script:?}: {failed:?}");
        for part in parts {
            assert!(failed.stderr.contains(part), "{part:?} is not in {}", failed.stderr);
        }
    }
}

#[test]
fn what_is_no_machine_is_told() {
    run("counter", &["--argument", "many"], "").failed(1, &["not created", "a whole number"]);
    let file = component("notes").replace("notes.component.wasm", "src/lib.rs");
    let done = run_with(program().args(["module", "run", &file]), b"");
    done.failed(1, &["not a WebAssembly component"]);
    run_with(program().args(["module", "run", "/nowhere.wasm"]), b"").failed(1, &["/nowhere.wasm"]);
}

/// Runs `module check` on a guest of the gallery with these lines as the file of commands.
fn check(guest: &str, arguments: &[&str], commands: &str) -> Done {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), commands).expect("it is written");
    let mut command = program();
    let name = guest.rsplit('/').next().expect("a name");
    let component = format!("{}/guests/{guest}/{name}.component.wasm", env!("CARGO_MANIFEST_DIR"));
    command.args(["module", "check", &component]).args(arguments);
    run_with(command.arg("--commands").arg(file.path()), b"")
}

#[test]
fn a_deterministic_machine_has_a_certificate() {
    let commands = "milk=two pints\n# a comment\n{\"hex\": \"613d62\"}\n{\"query\": \
        \"milk\"}\n{\"grant_ms\": 500}\nnonsense\nmilk=\n";
    let done = check("notes", &["--count", "60", "--seed", "7"], commands);
    for part in [
        "world     stored",
        "import    statehouse:machine/store@0.1.0",
        "export    statehouse:machine/behavior@0.1.0",
        "features  ",
        "6 given, 60 made up from seed 7",
        "queries   ",
        "ok        long batches, the same as one batch each",
        "ok        snapshots, the same as one batch each",
        "ok        failures, the same as one batch each",
        "ok        another replica, the same as a replica",
        "ok        plain code, the same as a replica",
        "deterministic: no difference was found",
    ] {
        assert!(done.ok().contains(part), "{part:?} is not in {}", done.ok());
    }
    assert_eq!(done.stderr, "", "there is nothing to warn of");

    let exactly = check("counter", &["--argument", "40", "--json"], "1\n2\nmany\n").json();
    assert_eq!((&exactly["deterministic"], &exactly["world"]), (&json!(true), &json!("resident")));
    let inputs = &exactly["inputs"];
    assert_eq!((&inputs["all"], &inputs["accepted"], &inputs["refused"]), (&json!(4), &json!(3), &json!(1)));
    assert_eq!(exactly["lines"], json!({ "given": 3, "made": 0, "seed": 1 }));
    assert!(exactly["cost"]["fuel"]["median"].as_u64() > Some(0));
    let again = check("counter", &["--argument", "40", "--json"], "1\n2\nmany\n").json();
    assert_eq!(again["cost"]["fuel"], exactly["cost"]["fuel"], "fuel is the same every time");
}

/// The numbers of a line of a certificate.
fn numbers(text: &str, line: &str) -> Vec<u64> {
    let found = text.lines().find_map(|whole| whole.strip_prefix(line)).unwrap_or_else(|| panic!("{text}"));
    let words = found.split(|c: char| !c.is_ascii_digit()).filter(|word| !word.is_empty());
    words.map(|word| word.parse().expect("a number")).collect()
}

#[test]
fn size_and_cost_are_told_and_follow_the_guest_and_its_inputs() {
    let cost = |guest: &str, commands: &str| {
        let done = check(guest, &[], commands);
        let text = done.ok();
        let size = std::fs::metadata(component(guest)).expect("the guest").len();
        assert_eq!(numbers(text, "bytes "), [size]);
        let [median, worst] = numbers(text, "fuel ")[..] else { panic!("two numbers: {text}") };
        for line in ["fuel ", "time ", "memory "] {
            let all = numbers(text, line);
            assert!(all.len() == 2 && all[0] > 0 && all[1] >= all[0], "{line}: {text}");
        }
        let memory = numbers(text, "memory ");
        assert!(memory.iter().all(|bytes| bytes % 65_536 == 0), "whole pages: {text}");
        (median, worst)
    };
    let (short, long) = ("a=b\n".repeat(9), format!("a={}\n", "b".repeat(4_000)).repeat(9));
    let (of_short, of_long) = (cost("notes", &short), cost("notes", &long));
    assert!(of_long.0 > of_short.0 + 4_000, "fuel for each byte: {of_short:?} {of_long:?}");
    // One long command among short ones is what is worst, and no more.
    let (median, worst) = cost("notes", &(short.clone() + &long[..4_003]));
    assert_eq!((median, worst >= of_long.0), (of_short.0, true));

    let json = check("notes", &["--json"], &short).json();
    for what in ["fuel", "time_ns", "memory_bytes"] {
        let [median, worst] = ["median", "worst"].map(|which| json["cost"][what][which].as_u64());
        assert!(median > Some(0) && worst >= median, "{what}: {}", json["cost"]);
    }
    assert_eq!(json["cost"]["fuel"]["median"], of_short.0);
}

#[test]
fn a_certificate_over_refusals_is_worth_a_warning() {
    let done = check("counter", &[], "one\ntwo\n");
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stderr.contains("not one command was accepted"), "{done:?}");
    run_with(program().args(["module", "check", &component("counter"), "--argument", "many"]), b"")
        .failed(1, &["not created", "a whole number"]);
    check("counter", &[], "# nothing\n").failed(2, &["has none"]);
    check("counter", &[], "{\"hex\": \"0\"}\n").failed(2, &["line 1", "hexadecimal"]);
}

/// Imports two things that no machine is given and one that it may have, and lacks its behavior.
const UNFIT: &str = "(component
    (import \"wasi:http/types@0.2.3\" (instance))
    (import \"wasi:clocks/wall-clock@0.2.6\" (instance))
    (import \"acme:mail/send@1.0.0\" (instance)))";

/// Runs `module check` on a component made of text.
fn check_text(text: &str, arguments: &[&str]) -> Done {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), wat::parse_str(text).expect("a component")).expect("it is written");
    run_with(program().args(["module", "check"]).arg(file.path()).args(arguments), b"")
}

#[test]
fn all_that_is_refused_is_named_with_what_to_do_beside_what_the_component_is() {
    let done = check_text(UNFIT, &[]);
    assert_eq!((done.code, done.stderr.as_str()), (1, ""), "{done:?}");
    let bytes = wat::parse_str(UNFIT).expect("a component").len();
    let expected = [
        "digest    ".to_owned(),
        format!("bytes     {bytes}"),
        "world     stored".to_owned(),
        "import    wasi:http/types@0.2.3: refused".to_owned(),
        "import    wasi:clocks/wall-clock@0.2.6: asks the clock: gets the log's".to_owned(),
        "import    acme:mail/send@1.0.0: refused".to_owned(),
        "features  component-model".to_owned(),
        "REFUSED   the import wasi:http/types@0.2.3 is not allowed: a machine reaches nothing but its own \
         state, or replicas would differ; build the guest without networking"
            .to_owned(),
        "REFUSED   the import acme:mail/send@1.0.0 is not allowed: only interfaces of statehouse:machine and \
         a small part of WASI are given to machines; leave out"
            .to_owned(),
        "REFUSED   the export statehouse:machine/behavior@0.1.0 is missing, which the world stored demands: \
         build the guest for"
            .to_owned(),
        "NOT a machine: no node takes it, and nothing of it was run".to_owned(),
    ];
    let lines: Vec<&str> = done.text().lines().collect();
    assert_eq!(lines.len(), expected.len(), "{}", done.text());
    for (line, begins) in lines.iter().zip(&expected) {
        assert!(line.starts_with(begins), "{line:?} does not begin with {begins:?}");
    }
    assert!(!done.text().contains("inputs "), "nothing was run: {}", done.text());
}

#[test]
fn what_is_over_a_bound_is_told_with_the_limit_beside_its_names() {
    let text =
        format!("(component (import \"wasi:cli/stdin@0.2.6\" (instance)) {})", "(component)".repeat(101));
    let done = check_text(&text, &[]);
    assert_eq!((done.code, done.stderr.as_str()), (1, ""), "{done:?}");
    for part in [
        "world     stored",
        "import    wasi:cli/stdin@0.2.6: reads its input",
        "REFUSED   the module has 101 components, at most 100 are allowed: compose it of fewer",
        "NOT a machine",
    ] {
        assert!(done.text().contains(part), "{part:?} is not in {}", done.text());
    }
    assert_eq!(check_text(&text, &["--json"]).json()["features"], Value::Null);
}

#[test]
fn what_is_refused_is_told_as_json_too() {
    let done = check_text(UNFIT, &["--json"]);
    assert_eq!(done.code, 1, "{done:?}");
    let told = done.json();
    assert_eq!((&told["world"], &told["deterministic"]), (&json!("stored"), &Value::Null));
    let http = json!({ "name": "wasi:http/types@0.2.3", "gets": null, "refused": true });
    assert_eq!(told["imports"][0], http);
    assert_eq!(told["imports"][1]["refused"], false);
    assert_eq!(told["features"], json!(["component-model"]));
    let refused = told["refused"].as_array().expect("a list");
    let names: Vec<&str> = refused.iter().filter_map(|why| why["name"].as_str()).collect();
    assert_eq!(names, ["wasi:http/types@0.2.3", "acme:mail/send@1.0.0", "statehouse:machine/behavior@0.1.0"]);
    assert!(refused.iter().all(|why| {
        why["why"].as_str().is_some_and(|why| why.contains("build") || why.contains("leave out"))
    }));
}

#[test]
fn a_feature_that_no_machine_has_is_told_by_name() {
    let module = "(core module (memory 1) (func (drop (i32.atomic.load (i32.const 0))))
        (func (drop (i32x4.relaxed_trunc_f32x4_s (v128.const i32x4 0 0 0 0)))))";
    let done = check_text(&format!("(component {module})"), &[]);
    assert_eq!(done.code, 1, "{done:?}");
    for part in [
        "features  simd, relaxed-simd, threads, component-model",
        "REFUSED   the feature relaxed-simd of WebAssembly is not given to machines (",
        "REFUSED   the feature threads of WebAssembly is not given to machines (",
        "NOT a machine",
    ] {
        assert!(done.text().contains(part), "{part:?} is not in {}", done.text());
    }
}

/// A guest whose author made a mistake: its sources are in `guests/bad`. The commands are more than enough.
fn caught(guest: &str, commands: &str, parts: &[&str]) -> Done {
    let done = check(&format!("bad/{guest}"), &[], commands);
    assert_eq!(done.code, 1, "{done:?}");
    for part in parts.iter().chain(&["NOT deterministic", "ok        another replica"]) {
        assert!(done.text().contains(part), "{part:?} is not in {}", done.text());
    }
    done
}

#[test]
fn a_stored_guest_that_counts_in_a_global_is_caught() {
    let parts = [
        "DIFFERS   long batches",
        "at input 3, command \"ben\": the answer",
        "one batch each  answered \"1\"",
        "long batches    answered \"2\"",
        "outside the store",
    ];
    caught("globals", "anna\nben\ncleo\n", &parts);
    let json = check("bad/globals", &["--json"], "anna\nben\n");
    assert_eq!((json.code, &json.json()["deterministic"]), (1, &json!(false)));
    let of_long = &json.json()["comparisons"][1];
    assert_eq!(
        (&of_long["run"], &of_long["difference"]["found"]),
        (&json!("long batches"), &json!("answered \"2\""))
    );
}

#[test]
fn a_guest_that_answers_in_the_order_of_a_hash_map_is_caught() {
    let commands = "one two three four five six seven eight\n".repeat(8);
    let done =
        caught("hash-order", &commands, &["DIFFERS   long batches", "the answer, from byte", "a hash map's"]);
    assert!(!done.text().contains("wasi:"), "its seed comes from nowhere: {}", done.text());
}

#[test]
fn a_clock_is_told_and_a_time_that_is_kept_is_caught() {
    let later = "{\"advance_ms\": 1000}\n";
    let parts = [
        "asks the clock: gets the log's",
        "ok        long batches",
        "DIFFERS   snapshots",
        "one batch each  answered \"1000\"",
        "from a seed or the clock",
    ];
    caught("clock", &format!("anna\n{later}ben\n{later}cleo\n"), &parts);
}

#[test]
fn chance_is_told_and_a_generator_that_is_kept_is_caught() {
    let parts =
        ["asks for random bytes: gets a stream made of", "DIFFERS   long batches", "generator's seed"];
    caught("randomness", &"1000000\n".repeat(8), &parts);
}

#[test]
fn a_guest_that_goes_to_the_end_of_its_stack_is_caught_in_plain_code_alone() {
    // Each a fifth longer than the one before: somewhere between, one kind of code is at its end and the
    // other is not.
    let depths = std::iter::successors(Some(2_000usize), |depth| Some(depth * 6 / 5));
    let texts = depths.take(20).map(|depth| format!("{}{}\n", "(".repeat(depth), ")".repeat(depth)));
    let commands: String = texts.collect();
    let parts = [
        "ok        one batch each",
        "ok        long batches",
        "ok        snapshots",
        "ok        failures",
        "DIFFERS   plain code",
        "a replica   answered",
        "plain code  Trapped: ",
        "call stack exhausted",
        "does it go to the end of its stack?",
    ];
    let done = caught("stack", &commands, &parts);
    // The first one is not deep enough for either.
    let at = numbers(done.text(), "          at input ");
    assert!(at[0] > 2 && at[0] < 20, "{}", done.text());
}
