//! What is refused: with which exit code, on which stream, in which words; and that nothing is lost by it.

use std::path::Path;
use std::process::Stdio;

use super::process::{Node, component, directory, program, run_with};

#[test]
fn what_is_not_understood_ends_with_2_and_points_to_the_help() {
    for line in ["", "servee", "apply x", "kv get", "query a b --consistency soon", "machine create x"] {
        let done = run_with(program().args(line.split_whitespace()), b"");
        done.failed(2, &["help"]);
    }
    run_with(program().arg("serve"), b"").failed(2, &["--data-dir"]);
    let done = run_with(program().args(["status", "--log", "=,="]), b"");
    done.failed(2, &["--log", "=,="]);
}

#[test]
fn a_line_that_is_not_understood_is_told_as_json_with_json() {
    for line in ["--json nosuch", "kv get --json", "status --json --timeout 0", "apply k @ --json"] {
        let done = run_with(program().args(line.split_whitespace()), b"");
        assert_eq!((done.code, done.stdout.len()), (2, 0), "{done:?}");
        let told: serde_json::Value = serde_json::from_str(&done.stderr).expect("an error as JSON");
        assert_eq!(told["error"]["reason"], "USAGE", "{line}");
        assert!(!told["error"]["message"].as_str().expect("text").starts_with("error"), "{told}");
    }
}

#[test]
fn output_that_cannot_be_written_is_a_failure_unless_nobody_reads_it() {
    let directory = directory();
    let node = Node::serve(directory.path(), &[]);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
    let done = node.command(["status", "--json"]).stdout(full).output().expect("it runs");
    let told = String::from_utf8(done.stderr).expect("text");
    assert_eq!(done.status.code(), Some(1), "{told}");
    assert!(told.contains("cannot write to standard output"), "{told}");
    let (nobody, pipe) = std::io::pipe().expect("a pipe");
    drop(nobody);
    let done = node.command(["status"]).stdout(pipe).output().expect("it runs");
    assert_eq!((done.status.code(), done.stderr.len()), (Some(0), 0), "as `head` does");
}

#[test]
fn help_goes_to_standard_output() {
    let done = run_with(program().args(["kv", "put", "--help"]), b"");
    assert!(done.ok().contains("Examples:"), "{done:?}");
    assert!(done.stderr.is_empty());
}

#[test]
fn a_node_that_is_not_there_is_named() {
    let done = run_with(program().args(["status", "--endpoints", "127.0.0.1:1"]), b"");
    done.failed(1, &["127.0.0.1:1", "is a node running there?"]);
    let directory = directory();
    let node = Node::serve(directory.path(), &[]);
    let done = run_with(program().args(["status", "--endpoints", &node.http]), b"");
    done.failed(1, &[&node.http, "does not answer as a node does"]);
    let both = run_with(program().args(["status", "--endpoints", "127.0.0.1:1,127.0.0.1:2"]), b"");
    both.failed(1, &["127.0.0.1:1", "127.0.0.1:2"]);
}

#[test]
fn the_first_endpoint_that_answers_is_used() {
    let directory = directory();
    let node = Node::serve(directory.path(), &["--name", "there"]);
    let endpoints = format!("127.0.0.1:1,{}", node.client);
    let done = run_with(program().args(["status", "--json", "--endpoints", &endpoints]), b"");
    assert_eq!(done.json()["name"], "there");
}

#[test]
fn unknown_and_taken_and_ill_formed_names() {
    let directory = directory();
    let node = Node::serve(directory.path(), &[]);
    node.run(["machine", "create", "k", "--module", "builtin:kv"]).ok();
    node.run(["machine", "create", "k", "--module", "builtin:kv"]).failed(1, &["\"k\""]);
    node.run(["machine", "create", "a b", "--module", "builtin:kv"]).failed(1, &["a b"]);
    node.run(["machine", "create", "x", "--module", "builtin:xv"]).failed(1, &["xv"]);
    node.run(["machine", "create", "x", "--module", "no-such.wasm"]).failed(2, &["no-such.wasm", "digest"]);
    let unknown = "ab".repeat(32);
    node.run(["machine", "create", "x", "--module", &unknown]).failed(1, &[&unknown]);
    node.run(["module", "show", &unknown]).failed(1, &[&unknown]);
    node.run(["module", "show", "abc"]).failed(2, &["abc", "64 hexadecimal digits"]);
    node.run(["machine", "delete", "nobody"]).failed(1, &["nobody"]);
    node.run(["apply", "nobody", "x"]).failed(1, &["nobody"]);
    node.run(["query", "nobody", "x"]).failed(1, &["nobody"]);
    node.run(["apply", "k", "@/nowhere/x"]).failed(1, &["/nowhere/x"]);
    node.run(["apply", "k", "abc", "--hex"]).failed(2, &["--hex"]);
    node.run(["kv", "--machine", "k", "get", "a"]).failed(1, &["\"a\""]);
}

#[test]
fn a_refusal_of_the_guest_is_told_with_its_code() {
    let directory = directory();
    let node = Node::serve(directory.path(), &[]);
    node.run(["machine", "create", "notes", "--module", &component("notes")]).ok();
    node.run(["apply", "notes", "no equals sign"]).failed(1, &["refused with code 1", "NAME=TEXT"]);
    let done = node.run(["apply", "notes", "no equals sign", "--json"]);
    assert_eq!(done.code, 1);
    assert_eq!(done.json()["refused"]["code"], 1);
    assert!(done.stderr.is_empty(), "told once: {done:?}");
    let create = ["machine", "create", "bad", "--module", &component("notes"), "--init", "no equals sign"];
    node.run(create).failed(1, &["NAME=TEXT"]);
    node.run(["machine", "show", "bad"]).failed(1, &["bad"]);
}

#[test]
fn a_machine_is_upgraded_to_a_component_of_its_world_and_to_nothing_else() {
    let directory = directory();
    let node = Node::serve(directory.path(), &[]);
    let (notes, counter) = (component("notes"), component("counter"));
    node.run(["machine", "create", "notes", "--module", &notes]).ok();
    node.run(["apply", "notes", "a=1"]).ok();
    let upgrade = |name: &str, module: &str| node.run(["machine", "upgrade", name, "--module", module]);
    upgrade("notes", &counter).failed(1, &["\"notes\"", "`stored`", "`resident`"]);
    upgrade("nobody", &notes).failed(1, &["nobody"]);
    upgrade("notes", "no-such.wasm").failed(2, &["no-such.wasm", "digest"]);
    let digest = node.run(["module", "push", &notes]).ok().to_owned();
    assert_eq!(upgrade("notes", &notes).ok(), format!("notes runs {digest}"));
    let told =
        node.run(["machine", "upgrade", "notes", "--module", &digest, "--argument", "x", "--json"]).json();
    assert_eq!(told["machine"]["module"], *digest);
    assert_eq!(node.run(["query", "notes", "a"]).ok(), "1");
}

#[test]
fn what_is_no_component_is_refused_and_nothing_remains() {
    let directory = directory();
    let node = Node::serve(&directory.path().join("data"), &[]);
    let whole = std::fs::read(component("notes")).unwrap();
    let push = |name: &str, bytes: &[u8]| {
        let file = directory.path().join(name);
        std::fs::write(&file, bytes).unwrap();
        node.run(["module", "push", &file.display().to_string()])
    };
    push("empty.wasm", b"").failed(1, &["error: "]);
    push("text.wasm", b"(component)").failed(1, &["error: "]);
    push("half.wasm", &whole[..whole.len() / 2]).failed(1, &["error: "]);
    // Everything that is wrong is named at once.
    let two = "(component (import \"wasi:http/types@0.2.3\" (instance)) (import \"acme:mail/send@1.0.0\" \
        (instance)))";
    let unfit = wat::parse_str(two).expect("a component");
    push("unfit.wasm", &unfit)
        .failed(1, &["wasi:http/types@0.2.3", "acme:mail/send@1.0.0", "behavior@0.1.0"]);
    let done = node.run(["module", "list", "--json"]);
    assert_eq!(done.json(), serde_json::json!([]));
    node.run(["module", "push", "/nowhere/x.wasm"]).failed(1, &["/nowhere/x.wasm"]);
    let done = push("whole.wasm", &whole);
    assert_eq!(done.ok().len(), 64);
    assert!(done.stderr.is_empty(), "no progress bar where there is no terminal: {done:?}");
}

#[test]
fn what_is_over_a_limit_is_told_its_size_and_the_limit() {
    let directory = directory();
    let path = directory.path().join("s.toml");
    let limits = "[limits]\nmodule_bytes_max = 20000\ncommand_bytes_max = 2000\nquery_bytes_max = 1500\n";
    std::fs::write(&path, limits).unwrap();
    let node = Node::serve(&directory.path().join("data"), &["--config", path.to_str().expect("text")]);
    node.run(["module", "push", &component("counter")]).failed(1, &["20000", "module_bytes_max"]);
    node.run(["machine", "create", "n", "--module", &component("notes")]).ok();
    let note = |bytes: usize| format!("a={}", "x".repeat(bytes - 2));
    node.run(["apply", "n", &note(2000)]).ok();
    node.run(["apply", "n", &note(2001)]).failed(1, &["2001", "2000", "command_bytes_max"]);
    node.run(["query", "n", &note(1501)]).failed(1, &["1501", "1500", "query_bytes_max"]);
    let large = directory.path().join("large");
    // Beyond what the transport takes, too.
    std::fs::write(&large, note(5 << 20)).unwrap();
    node.run(["apply", "n", &format!("@{}", large.display())]).failed(1, &["too large"]);
    assert_eq!(node.run(["query", "n", "a"]).ok().len(), 1998);
}

#[test]
fn all_mistakes_of_a_configuration_are_told_at_once() {
    let directory = directory();
    let path = directory.path().join("s.toml");
    std::fs::write(&path, "nam = 'x'\n[limits]\ncommand_bytes_max = 1\n[listen]\nclient = 7070\n").unwrap();
    let done = run_with(program().args(["serve", "--config"]).arg(&path), b"");
    done.failed(2, &["line 1: ", "`nam`", "line 3: ", "1024", "line 5: ", "string"]);
    let done = run_with(program().args(["serve", "--config", "/nowhere/s.toml"]), b"");
    done.failed(1, &["/nowhere/s.toml"]);
}

fn serve(data_dir: &Path, arguments: &[&str]) -> super::process::Done {
    let mut command = program();
    command
        .args(["serve", "--client", "127.0.0.1:0", "--peer", "127.0.0.1:0", "--data-dir"])
        .arg(data_dir)
        .args(arguments);
    run_with(&mut command, b"")
}

#[test]
fn a_data_directory_is_for_one_node() {
    let directory = directory();
    serve(directory.path(), &[]).failed(1, &["--bootstrap"]);
    let node = Node::serve(directory.path(), &["--name", "one"]);
    serve(directory.path(), &["--name", "one"]).failed(1, &["in use"]);
    node.kill();
    serve(directory.path(), &["--name", "two"]).failed(1, &["one", "two"]);
    let file = directory.path().join("file");
    std::fs::write(&file, b"").unwrap();
    serve(&file, &["--bootstrap"]).failed(1, &["file", "not a directory"]);
}

#[test]
fn a_taken_address_is_named() {
    let directory = directory();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let data = directory.path().join("data");
    serve(&data, &["--bootstrap", "--http", &address]).failed(1, &[&address, "in use"]);
    assert!(!data.exists(), "nothing is begun before the addresses are bound");
}

#[test]
fn a_node_that_is_to_join_another_cluster_than_its_own_does_not_start() {
    let (own, others) = (directory(), directory());
    let other = Node::serve(others.path(), &[]);
    Node::serve(own.path(), &[]).kill();
    let join = |address: &str| {
        let mut command = program();
        command.args(["serve", "--json", "--client", "127.0.0.1:0", "--peer", "127.0.0.1:0"]);
        command.args(["--join", address, "--data-dir"]).arg(own.path());
        Node::attempt(&mut command, Stdio::piped(), |_| {})
    };
    let Err((code, told)) = join(&other.client) else { panic!("it serves") };
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("is of the cluster") && told.contains("another --data-dir"), "{told}");
    // One that is not there cannot be asked, and is not needed.
    assert!(join("127.0.0.1:1").is_ok());
}
