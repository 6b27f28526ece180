//! When followers hear what is committed.

use super::*;

/// Three voters that are at rest.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new(3, 3);
    cluster.now.monotonic_ms += 1_000;
    cluster
}

/// Commands in such quick succession that the leader hopes for the next. Gives back the last one's number.
fn hurry(cluster: &mut Cluster) -> u64 {
    const COUNT: u64 = 10;
    (1..=COUNT).for_each(|id| propose(cluster, id));
    COUNT
}

/// A command, and all that is said because of it before any time passes.
fn propose(cluster: &mut Cluster, id: u64) {
    cluster.sent.clear();
    cluster.begin_proposing(1, id);
    cluster.deliver();
}

/// Appends without entries since the last command.
fn bare_appends(cluster: &Cluster) -> usize {
    let bare = |body: &PeerBody| matches!(body, PeerBody::Append { entries, .. } if entries.is_empty());
    cluster.sent.iter().filter(|(_, out)| bare(&out.message.body)).count()
}

#[test]
fn a_commit_after_a_silence_is_told_at_once() {
    let mut cluster = cluster();
    for id in 1..=3 {
        propose(&mut cluster, id);
        assert_eq!(bare_appends(&cluster), 2);
        assert_eq!((cluster.applied(2), cluster.applied(3)), (cluster.applied(1), cluster.applied(1)));
        cluster.now.monotonic_ms += 4;
    }
}

#[test]
fn of_commands_in_quick_succession_followers_hear_with_the_next() {
    let mut cluster = cluster();
    let last = hurry(&mut cluster);
    for id in last + 1..last + 9 {
        cluster.now.monotonic_ms += 1;
        let before = cluster.applied(1);
        propose(&mut cluster, id);
        assert_eq!(bare_appends(&cluster), 0);
        assert_eq!((cluster.applied(1), cluster.applied(2)), (before.next(), before));
    }
}

#[test]
fn no_follower_waits_longer_than_the_delay_for_the_last() {
    let mut cluster = cluster();
    let last = hurry(&mut cluster);
    let due_ms = cluster.now.monotonic_ms + 4;
    assert_eq!(cluster.due_ms(), Some(due_ms));
    for now_ms in cluster.now.monotonic_ms..=due_ms {
        assert_ne!(cluster.applied(2), cluster.applied(1));
        cluster.now.monotonic_ms = now_ms;
        cluster.give(1, Input::Due);
        cluster.deliver();
    }
    assert_eq!((cluster.applied(2), cluster.applied(3)), (cluster.applied(1), cluster.applied(1)));
    assert_eq!(cluster.due_ms(), None);
    propose(&mut cluster, last + 1);
    assert_eq!(cluster.applied(2), cluster.applied(1), "it has hoped in vain");
}

#[test]
fn a_follower_that_reads_hears_at_once() {
    let mut cluster = cluster();
    hurry(&mut cluster);
    assert_ne!(cluster.applied(2), cluster.applied(1));
    cluster.read(2, 7, false);
    cluster.deliver();
    assert_eq!(cluster.answered(), [7]);
    assert_eq!(cluster.applied(2), cluster.applied(1));
}

#[test]
fn a_new_leader_owes_nothing_that_another_kept_back() {
    let mut cluster = cluster();
    let last = hurry(&mut cluster);
    transfer(&mut cluster, last + 1, replica(2));
    cluster.settle();
    assert_eq!(cluster.status(2).standing.role, Role::Leader);
    assert_eq!((cluster.applied(1), cluster.applied(3)), (cluster.applied(2), cluster.applied(2)));
}
