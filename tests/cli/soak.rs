//! `statehouse soak`: what it prints, and that its churn reaches what it is for.

use super::process::{program, run_with};

#[test]
fn replicas_that_fall_behind_the_log_are_reseeded_and_nothing_is_lost() {
    let mut command = program();
    command.args(["soak", "--cycles", "2", "--writes", "300", "--keep-entries", "20", "--json"]);
    let told = run_with(&mut command, b"").json();
    assert_eq!(
        (&told["well"], &told["divergences"], &told["missing_keys"]),
        (&true.into(), &0.into(), &0.into())
    );
    let count = |name: &str| told[name].as_u64().expect("a number");
    assert_eq!((count("cycles"), count("writes") + count("unknown_fates") >= 600), (2, true), "{told}");
    assert!(count("reseeds_started") >= 1, "{told}");
    assert_eq!(count("reseeds_started"), count("reseeds_finished"), "{told}");
    assert!(count("leader_changes") >= 1 && count("stale_leader_refusals") >= 1, "{told}");
    assert!(count("largest_lag") > 20, "{told}");
}

#[test]
fn what_no_cluster_bears_is_refused_with_what_it_would() {
    let refused = |arguments: &[&str]| {
        let mut command = program();
        run_with(command.arg("soak").args(arguments), b"")
    };
    refused(&["--down", "2"]).failed(2, &["--down 2", "of 3 replicas 1", "--replicas 5"]);
    refused(&["--replicas", "8"]).failed(2, &["8", "1..=7"]);
    let full = tempfile::tempdir().expect("a directory");
    std::fs::write(full.path().join("mine"), "x").expect("writable");
    let path = full.path().to_str().expect("text");
    refused(&["--data-dir", path]).failed(1, &[path, "not empty"]);
}
