//! Reads by lease, and the loyalty of voters that they rely on.

use super::*;

/// Whom node `n` would vote for: the candidate has everything.
fn request(cluster: &Cluster, trial: bool, transfer: bool) -> PeerBody {
    let GroupStatus { last, standing, .. } = cluster.status(1);
    let at = (last, standing.term);
    PeerBody::RequestVote { trial, last: at, commit: at, transfer }
}

fn grants(said: &[PeerBody]) -> bool {
    said.iter().any(|body| matches!(body, PeerBody::Vote { granted: true, .. }))
}

#[test]
fn a_leader_with_a_lease_answers_at_once_until_the_lease_ends() {
    let mut cluster = Cluster::new(3, 3);
    cluster.propose(1, 1);
    cluster.read(1, 1, true);
    assert!(cluster.answered().is_empty(), "nobody has confirmed the leader yet");
    cluster.settle();
    assert_eq!(cluster.answered(), [1]);
    cluster.down.extend([2, 3]);
    cluster.now.monotonic_ms += 901;
    cluster.read(1, 2, true);
    assert_eq!(cluster.reads[0].point.as_ref().unwrap().index, cluster.applied(1));
    assert_eq!(cluster.answered(), [2]);
    cluster.read(1, 3, false);
    cluster.now.monotonic_ms += 1;
    cluster.read(1, 4, true);
    cluster.settle();
    assert!(cluster.answered().is_empty(), "one trusts no clock, for the other the lease has ended");
}

#[test]
fn a_lease_counts_from_the_question_and_not_from_the_answer() {
    let mut cluster = Cluster::new(3, 3);
    cluster.read(1, 1, false);
    cluster.now.monotonic_ms += 500;
    cluster.settle();
    assert_eq!(cluster.answered(), [1]);
    cluster.now.monotonic_ms += 401;
    cluster.read(1, 2, true);
    assert_eq!(cluster.answered(), [2]);
    cluster.now.monotonic_ms += 1;
    cluster.read(1, 3, true);
    assert!(cluster.answered().is_empty());
}

#[test]
fn reads_by_lease_extend_the_lease_before_it_ends() {
    let mut cluster = Cluster::new(3, 3);
    cluster.read(1, 1, true);
    cluster.settle();
    for id in 2..100 {
        cluster.now.monotonic_ms += 100;
        cluster.answered();
        cluster.read(1, id, true);
        assert_eq!(cluster.answered(), [id], "without waiting for anybody");
        cluster.settle();
    }
    let asks = |body: &PeerBody| matches!(body, PeerBody::Heartbeat { context, .. } if !context.is_empty());
    let rounds = cluster.sent.iter().filter(|(_, out)| asks(&out.message.body)).count() / 2;
    assert!((10..=25).contains(&rounds), "{rounds} rounds in ten seconds");
}

#[test]
fn a_follower_asked_for_a_read_by_lease_asks_the_leader() {
    let mut cluster = Cluster::new(3, 3);
    cluster.read(1, 1, true);
    cluster.settle();
    cluster.answered();
    cluster.read(2, 2, true);
    assert!(cluster.answered().is_empty());
    cluster.settle();
    assert_eq!(cluster.answered(), [2]);
}

#[test]
fn a_leader_that_offered_its_place_has_no_lease_even_if_nobody_took_it() {
    let mut cluster = Cluster::new(3, 3);
    cluster.read(1, 1, true);
    cluster.settle();
    cluster.down.insert(3);
    transfer(&mut cluster, 1, replica(3));
    cluster.answered();
    cluster.read(1, 2, true);
    assert!(cluster.answered().is_empty(), "the offer is under way");
    cluster.tick(11);
    assert!(matches!(cluster.refusal(), ProposeError::TransferFailed(_)));
    cluster.tick(3);
    cluster.answered();
    cluster.read(1, 3, true);
    assert!(cluster.answered().is_empty(), "it may still arrive");
    cluster.settle();
    assert_eq!(cluster.answered(), [3]);
}

#[test]
fn a_voter_that_hears_its_leader_votes_for_nobody_but_whom_the_leader_named() {
    let mut cluster = Cluster::new(3, 3);
    cluster.tick(3);
    let term = cluster.status(1).standing.term.0;
    for trial in [true, false] {
        let body = request(&cluster, trial, false);
        assert_eq!(cluster.said_to(2, (3, term + 1), body), []);
    }
    // A later term would make the engine forget its leader, and with it whom it was loyal to.
    let late = PeerBody::HeartbeatReply { commit: Index(0), context: Bytes::new() };
    cluster.said_to(2, (3, term + 1), late);
    assert_eq!(cluster.status(2).standing.term, Term(term + 1));
    let body = request(&cluster, false, false);
    assert_eq!(cluster.said_to(2, (3, term + 1), body.clone()), []);
    cluster.now.monotonic_ms += 1_000;
    assert!(grants(&cluster.said_to(2, (3, term + 1), body)), "its patience is at an end");
    let mut cluster = Cluster::new(3, 3);
    let body = request(&cluster, false, true);
    assert!(grants(&cluster.said_to(2, (3, term + 1), body)), "the leader asked for it");
}

#[test]
fn a_voter_that_was_restarted_waits_an_election_timeout_before_it_votes() {
    for trial in [true, false] {
        let mut cluster = Cluster::new(3, 3);
        let term = cluster.status(1).standing.term.0;
        cluster.tick(20);
        cluster.restart(2);
        let body = request(&cluster, trial, false);
        cluster.now.monotonic_ms += 999;
        assert_eq!(cluster.said_to(2, (3, term + 1), body.clone()), []);
        cluster.give(2, Input::Campaign { group: G });
        assert_eq!(cluster.status(2).standing.role, Role::Follower, "nor does it stand for election itself");
        cluster.now.monotonic_ms += 1;
        assert!(grants(&cluster.said_to(2, (3, term + 1), body)));
    }
    let mut cluster = Cluster::new(3, 3);
    cluster.restart(2);
    let body = request(&cluster, false, true);
    assert!(grants(&cluster.said_to(2, (3, 2), body)), "the leader asked for it");
}

#[test]
fn a_burst_of_ticks_makes_nobody_stand_for_election_early() {
    let mut cluster = Cluster::new(3, 3);
    cluster.tick(3);
    (0..100).for_each(|_| cluster.give(2, Input::Tick));
    assert_eq!(cluster.status(2).standing.role, Role::Follower);
    cluster.now.monotonic_ms += 1_100;
    cluster.give(2, Input::Tick);
    assert_eq!(cluster.status(2).standing.role, Role::Candidate);
}

#[test]
fn a_read_on_any_replica_sees_what_the_leaders_clock_shows() {
    let mut cluster = Cluster::new(3, 3);
    cluster.propose(1, 1);
    for (node, lease) in [(1, false), (2, false), (3, false), (1, true)] {
        cluster.now.monotonic_ms += 70;
        // Which the log's clock does not follow.
        cluster.now.wall_ms += 1_000_000;
        cluster.reads.clear();
        cluster.read(node, node, lease);
        cluster.settle();
        let shown = cluster.members[&1].shard.log_time(cluster.now, G).expect("it leads");
        let [ReadReady { point: Ok(point), .. }] = &cluster.reads[..] else {
            panic!("node {node}: {:?}", cluster.reads)
        };
        assert_eq!(point.time, shown, "node {node}");
        assert!(shown.0 >= 1_070 && shown.0 < 1_000_000, "{shown}");
    }
}
