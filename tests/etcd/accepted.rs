//! The differences from etcd that are on purpose, each with its reason: the README lists them too. Everything
//! else is a mistake.

use super::request::Request;

/// What etcd leaves out, and how an answer reads without it.
const MORE_THAN_ETCD: [(&str, Mask); 2] = [
    ("keys_only shows leases, which etcd does not look up", without_leases),
    ("a transaction within another has a revision in its header", without_inner_revisions),
];

/// An answer without some part.
type Mask = fn(&Request, &str) -> String;

/// Why two answers to a request may differ; none: they may not.
pub fn reason(request: &Request, etcd: &str, ours: &str) -> Option<&'static str> {
    if ours.ends_with("etcdserver: request is too large") && etcd.starts_with("error ") {
        return Some("of two mistakes etcd tells another one first");
    }
    let mut answers = (etcd.to_owned(), ours.to_owned());
    for (reason, mask) in MORE_THAN_ETCD {
        answers = (mask(request, &answers.0), mask(request, &answers.1));
        if answers.0 == answers.1 {
            return Some(reason);
        }
    }
    None
}

fn without_leases(request: &Request, answer: &str) -> String {
    match format!("{request:?}").contains("keys_only: true") {
        true => without_number(answer, "lease: "),
        false => answer.to_owned(),
    }
}

fn without_inner_revisions(_: &Request, answer: &str) -> String {
    const INNER: &str =
        "ResponseTxn(TxnResponse { header: Some(ResponseHeader { cluster_id: 0, member_id: 0, revision: ";
    without_number(answer, INNER)
}

/// Drops the number behind each `before`.
fn without_number(answer: &str, before: &str) -> String {
    let mut parts = answer.split(before);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| all + before + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}
