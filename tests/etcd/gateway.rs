//! The JSON gateway through `curl`: paths, bodies and answers as etcd has them, numbers of 64 bits as text
//! and bytes in base64 included.

use std::process::Command;

use serde_json::Value;

use super::process::run_with;
use super::server::Server;

/// Requests in order: each finds what those before left. Keys and values are in base64.
const REQUESTS: [(&str, &str); 76] = [
    ("/v3/kv/put", r#"{"key": "YQ==", "value": "MQ=="}"#),
    ("/v3/kv/put", r#"{"key": "YQ==", "value": "Mg==", "prev_kv": true}"#),
    ("/v3/kv/put", r#"{"key": "YQ==", "prevKv": true, "ignoreValue": true}"#),
    ("/v3/kv/put", r#"{"key": "Yg==", "value": "/wA="}"#),
    ("/v3/kv/put", r#"{"key": ""}"#),
    ("/v3/kv/put", r#"{"key": "YQ==", "lease": "4711"}"#),
    ("/v3/kv/put", r#"{"key": "YQ==", "lease": 4711}"#),
    ("/v3/kv/put", r#"{"key": "not base64!"}"#),
    ("/v3/kv/put", r#"{"key": "YQ==", "no_such_field": 1}"#),
    ("/v3/kv/put", "no JSON"),
    ("/v3/kv/put", ""),
    ("/v3/kv/range", r#"{"key": "YQ=="}"#),
    ("/v3/kv/range", r#"{"key": "AA==", "range_end": "AA=="}"#),
    (
        "/v3/kv/range",
        r#"{"key": "AA==", "rangeEnd": "AA==", "limit": "1", "sort_order": "DESCEND", "sort_target": "MOD"}"#,
    ),
    ("/v3/kv/range", r#"{"key": "AA==", "range_end": "AA==", "sort_order": 2, "keys_only": true}"#),
    ("/v3/kv/range", r#"{"key": "YQ==", "sort_order": "SIDEWAYS"}"#),
    ("/v3/kv/range", r#"{"key": "YQ==", "count_only": true}"#),
    ("/v3/kv/range", r#"{"key": "YQ==", "revision": "100000"}"#),
    ("/v3/kv/range", r#"{"key": "absent"}"#),
    (
        "/v3/kv/txn",
        r#"{"compare": [{"target": "VALUE", "key": "YQ==", "value": "Mg=="}],
            "success": [{"requestPut": {"key": "Yw==", "value": "Mw=="}}, {"request_range": {"key": "YQ=="}}],
            "failure": [{"request_delete_range": {"key": "YQ=="}}]}"#,
    ),
    (
        "/v3/kv/txn",
        r#"{"compare": [{"target": "CREATE", "result": "GREATER", "key": "Yw==", "create_revision": "1000"}],
            "failure": [{"request_delete_range": {"key": "Yw==", "prev_kv": true}}]}"#,
    ),
    ("/v3/kv/deleterange", r#"{"key": "Yg==", "prev_kv": true}"#),
    ("/v3/kv/compaction", r#"{"revision": "3"}"#),
    ("/v3/kv/compaction", r#"{"revision": "3"}"#),
    ("/v3/lease/grant", r#"{"TTL": "600", "ID": "77"}"#),
    ("/v3/lease/grant", r#"{"TTL": 600, "ID": 77}"#),
    ("/v3/lease/keepalive", r#"{"ID": "77"}"#),
    ("/v3/lease/leases", "{}"),
    ("/v3/lease/revoke", r#"{"ID": "77"}"#),
    ("/v3/lease/timetolive", r#"{"ID": "77"}"#),
    ("/v3/auth/status", "{}"),
    ("/v3/auth/enable", "{}"),
    // Nobody was entered, and nobody is asked for.
    ("/v3/auth/disable", "{}"),
    ("/v3/auth/authenticate", r#"{"name": "a", "password": "b"}"#),
    ("/v3/auth/user/add", "{}"),
    ("/v3/auth/user/get", r#"{"name": "a"}"#),
    ("/v3/auth/user/list", "{}"),
    ("/v3/auth/user/delete", r#"{"name": "a"}"#),
    ("/v3/auth/user/changepw", r#"{"name": "a", "password": "b"}"#),
    ("/v3/auth/user/changepw", "{}"),
    ("/v3/auth/user/grant", r#"{"user": "a", "role": "r"}"#),
    ("/v3/auth/user/grant", r#"{"role": "r"}"#),
    ("/v3/auth/user/revoke", r#"{"name": "a", "role": "r"}"#),
    ("/v3/auth/user/revoke", "{}"),
    ("/v3/auth/role/add", "{}"),
    ("/v3/auth/role/get", r#"{"role": "root"}"#),
    ("/v3/auth/role/list", "{}"),
    ("/v3/auth/role/delete", "{}"),
    ("/v3/auth/role/grant", r#"{"name": "r"}"#),
    ("/v3/auth/role/grant", r#"{"name": "r", "perm": {}}"#),
    ("/v3/auth/role/grant", r#"{"name": "r", "perm": {"key": "YQ=="}}"#),
    ("/v3/auth/role/grant", r#"{"name": "r", "perm": {"key": "YQ==", "range_end": "AA=="}}"#),
    ("/v3/auth/role/grant", r#"{"name": "r", "perm": {"key": "YQ==", "range_end": "YQ=="}}"#),
    ("/v3/auth/role/grant", r#"{"perm": {"key": "Yg==", "range_end": "YQ=="}}"#),
    ("/v3/auth/role/revoke", r#"{"role": "r", "key": "YQ=="}"#),
    ("/v3/maintenance/alarm", "{}"),
    ("/v3/no/such/path", "{}"),
    // Locks and elections refuse without etcd's codes.
    ("/v3/lock/lock", r#"{"name": "bQ==", "lease": "4711"}"#),
    ("/v3/lock/unlock", r#"{"key": ""}"#),
    ("/v3/election/campaign", r#"{"name": "bQ==", "lease": "4711", "value": "MQ=="}"#),
    ("/v3/election/proclaim", r#"{"leader": {"name": "bQ==", "key": "", "lease": "4711"}, "value": "MQ=="}"#),
    ("/v3/election/proclaim", r#"{"leader": {"name": "bQ==", "key": "YQ==", "rev": "1"}, "value": "MQ=="}"#),
    ("/v3/election/resign", r#"{"leader": {"name": "bQ==", "key": ""}}"#),
    ("/v3/election/resign", "{}"),
    ("/v3/election/leader", r#"{"name": "bQ=="}"#),
    ("/v3/maintenance/hashkv", r#"{"revision": "-1"}"#),
    ("/v3/maintenance/hashkv", r#"{"revision": "1"}"#),
    ("/v3/maintenance/hashkv", r#"{"revision": "4"}"#),
    ("/v3/maintenance/hashkv", r#"{"revision": "100000"}"#),
    ("/v3/maintenance/hashkv", "{}"),
    ("/v3/cluster/member/add", "{}"),
    ("/v3/cluster/member/add", r#"{"peerURLs": ["nonsense"]}"#),
    ("/v3/cluster/member/add", r#"{"peerURLs": ["http://a"]}"#),
    ("/v3/cluster/member/add", r#"{"peerURLs": ["http://a:1", "http://a:1/x"]}"#),
    ("/v3/cluster/member/add", r#"{"peerURLs": ["http://a:b"]}"#),
    ("/v3/cluster/member/update", r#"{"ID": "1", "peerURLs": ["nonsense"]}"#),
];

/// How both begin to tell of what is no JSON or no base64: the rest is each parser's own way of putting it.
const SYNTAX: [&str; 4] = ["proto: (line 1", "proto: invalid base64", "invalid character", "no JSON: "];

/// What curl got: the status, and the body without ids and terms.
fn ask(server: &Server, path: &str, body: &str) -> String {
    let url = format!("http://{}{path}", server.address);
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "30", "--write-out", "\n%{http_code}"]);
    command.args(["--data-binary", body, &url]);
    let done = run_with(&mut command, b"");
    // Go's protobuf writes one of two kinds of space behind "proto:": which, the hash of the program decides.
    let answer = done.ok().replace('\u{a0}', " ");
    let (body, status) = answer.rsplit_once('\n').expect("a status");
    let mut parsed: Value = serde_json::from_str(body).unwrap_or_else(|_| Value::from(body.trim()));
    hide_ids(&mut parsed);
    if parsed["message"].as_str().is_some_and(|message| SYNTAX.iter().any(|words| message.contains(words))) {
        parsed["message"] = Value::from("about the syntax");
    }
    format!("{status} {parsed}")
}

fn hide_ids(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match ["cluster_id", "member_id", "raft_term", "hash"].contains(&name.as_str()) {
                    true => *value = Value::from("figure"),
                    false => hide_ids(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(hide_ids),
        _ => {}
    }
}

/// What two servers answered differently.
pub fn differences(first: &Server, second: &Server) -> Vec<String> {
    let mut differences = Vec::new();
    for (path, body) in REQUESTS {
        let (of_first, of_second) = (ask(first, path, body), ask(second, path, body));
        if of_first != of_second {
            let (a, b) = (first.name, second.name);
            differences.push(format!("{path} {body}\n  {a}: {of_first}\n  {b}: {of_second}\n"));
        }
    }
    differences
}

/// A watch through the gateway: one line of JSON a response. From behind what the requests compacted.
pub fn a_watch(server: &Server) {
    let revision = ask(server, "/v3/kv/put", r#"{"key": "dw==", "value": "MQ=="}"#);
    assert!(revision.starts_with("200 "), "{revision}");
    let body = r#"{"create_request": {"key": "dw==", "start_revision": "4"}}"#;
    let mut command = Command::new("curl");
    command.args(["--silent", "--no-buffer", "--max-time", "2", "--data-binary", body]);
    let done = run_with(command.arg(format!("http://{}/v3/watch", server.address)), b"");
    let lines: Vec<Value> =
        done.text().lines().map(|line| serde_json::from_str(line).expect("one JSON value a line")).collect();
    assert_eq!(lines[0]["result"]["created"], true, "{lines:?}");
    assert_eq!(lines[1]["result"]["events"][0]["kv"]["value"], "MQ==", "{lines:?}");
}

/// The pages beside the API.
pub fn pages(server: &Server) -> [String; 8] {
    let pages = [
        "version",
        "health",
        "livez",
        "livez/serializable_read?verbose",
        "readyz",
        "readyz?exclude=serializable_read",
        "readyz/linearizable_read?verbose=",
        "readyz/nosuch",
    ];
    pages.map(|page| {
        let mut command = Command::new("curl");
        let url = format!("http://{}/{page}", server.address);
        run_with(command.args(["--silent", "--max-time", "30", &url]), b"").ok().to_owned()
    })
}
