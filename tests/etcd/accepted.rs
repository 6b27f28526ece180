//! The differences from etcd that are on purpose, each with its reason. Everything else is a mistake.

use super::request::Request;

/// Why two answers to a request may differ; none: they may not.
pub fn reason(request: &Request, etcd: &str, ours: &str) -> Option<&'static str> {
    let keys_only = format!("{request:?}").contains("keys_only: true");
    if keys_only && without_leases(etcd) == without_leases(ours) {
        return Some(
            "etcd reads keys alone from its index, which knows no leases: it says 0, we say the lease",
        );
    }
    None
}

/// An answer as text, whatever leases it names.
fn without_leases(answer: &str) -> String {
    let mut parts = answer.split("lease: ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| all + "lease: " + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}
