// goclient puts a server through what etcd's own Go client and its recipes do: locks, elections, software
// transactions, leases, watches, mirrors, namespaces, name resolution. It prints each thing that went wrong,
// and exits with 1 if one did.
//
//	goclient ENDPOINT[,ENDPOINT...]
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
)

// How long one check may take.
const patience = 60 * time.Second

type check struct {
	name string
	run  func(context.Context, *clientv3.Client) error
}

var checks = []check{
	{"mutexes keep each other out", mutexes},
	{"a lock that is taken is not waited for by TryLock", tryLock},
	{"a lock ends with its holder's lease", lockOfEndedLease},
	{"an election has one leader at a time, whom observers see", elections},
	{"software transactions lose and make no money", stm},
	{"each isolation of software transactions reads what it promises", stmIsolation},
	{"a lease that is kept alive stays, and takes its keys along at its end", leases},
	{"a watch resumes in the past, in order and without gaps", watches},
	{"watches share a stream, and end one by one", manyWatches},
	{"errors are those that the client knows", knownErrors},
	{"a mirror has everything", mirrored},
	{"a namespace sees its own keys only", namespaced},
	{"endpoints are registered and watched", resolved},
	{"a snapshot is streamed whole", snapshot},
	{"the cluster says who it is", cluster},
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: goclient ENDPOINT[,ENDPOINT...]")
		os.Exit(2)
	}
	client, err := connect()
	if err != nil {
		fmt.Fprintln(os.Stderr, "no client:", err)
		os.Exit(1)
	}
	defer client.Close()
	failed := 0
	for _, check := range checks {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		err := check.run(ctx, client)
		cancel()
		if err != nil {
			failed++
			fmt.Printf("FAILED %s: %v\n", check.name, err)
		} else {
			fmt.Printf("ok     %s\n", check.name)
		}
	}
	if failed > 0 {
		fmt.Printf("%d of %d failed\n", failed, len(checks))
		os.Exit(1)
	}
}

func connect() (*clientv3.Client, error) {
	endpoints := strings.Split(os.Args[1], ",")
	return clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 10 * time.Second})
}

// each runs the same thing several times at once, and gives the first error.
func each(times int, run func(number int) error) error {
	var group sync.WaitGroup
	results := make([]error, times)
	for number := range times {
		group.Go(func() { results[number] = run(number) })
	}
	group.Wait()
	return errors.Join(results...)
}

func mutexes(ctx context.Context, client *clientv3.Client) error {
	const workers, rounds = 5, 8
	if _, err := client.Put(ctx, "mutex/count", "0"); err != nil {
		return err
	}
	// Not atomic by itself: reads, waits, writes.
	increment := func() error {
		got, err := client.Get(ctx, "mutex/count")
		if err != nil {
			return err
		}
		count, err := strconv.Atoi(string(got.Kvs[0].Value))
		if err != nil {
			return err
		}
		time.Sleep(2 * time.Millisecond)
		_, err = client.Put(ctx, "mutex/count", strconv.Itoa(count+1))
		return err
	}
	err := each(workers, func(int) error {
		session, err := concurrency.NewSession(client, concurrency.WithTTL(20))
		if err != nil {
			return err
		}
		defer session.Close()
		mutex := concurrency.NewMutex(session, "mutex/lock")
		for range rounds {
			if err := mutex.Lock(ctx); err != nil {
				return err
			}
			if err := increment(); err != nil {
				return err
			}
			owner, err := client.Txn(ctx).If(mutex.IsOwner()).Commit()
			if err != nil || !owner.Succeeded {
				return fmt.Errorf("not the owner of the lock it has: %v", err)
			}
			if err := mutex.Unlock(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	got, err := client.Get(ctx, "mutex/count")
	if err != nil {
		return err
	}
	if value := string(got.Kvs[0].Value); value != strconv.Itoa(workers*rounds) {
		return fmt.Errorf("%s increments instead of %d", value, workers*rounds)
	}
	return nil
}

func twoSessions(client *clientv3.Client) (*concurrency.Session, *concurrency.Session, error) {
	first, err := concurrency.NewSession(client, concurrency.WithTTL(20))
	if err != nil {
		return nil, nil, err
	}
	second, err := concurrency.NewSession(client, concurrency.WithTTL(20))
	return first, second, err
}

func tryLock(ctx context.Context, client *clientv3.Client) error {
	first, second, err := twoSessions(client)
	if err != nil {
		return err
	}
	defer first.Close()
	defer second.Close()
	held := concurrency.NewMutex(first, "try/lock")
	wanted := concurrency.NewMutex(second, "try/lock")
	if err := held.TryLock(ctx); err != nil {
		return err
	}
	if err := wanted.TryLock(ctx); !errors.Is(err, concurrency.ErrLocked) {
		return fmt.Errorf("a taken lock: %v", err)
	}
	if err := held.Unlock(ctx); err != nil {
		return err
	}
	return wanted.TryLock(ctx)
}

func lockOfEndedLease(ctx context.Context, client *clientv3.Client) error {
	first, second, err := twoSessions(client)
	if err != nil {
		return err
	}
	defer second.Close()
	if err := concurrency.NewMutex(first, "ended/lock").Lock(ctx); err != nil {
		return err
	}
	waiting := make(chan error, 1)
	go func() { waiting <- concurrency.NewMutex(second, "ended/lock").Lock(ctx) }()
	select {
	case err := <-waiting:
		return fmt.Errorf("two have the lock: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	if _, err := client.Revoke(ctx, first.Lease()); err != nil {
		return err
	}
	if err := <-waiting; err != nil {
		return err
	}
	select {
	case <-first.Done():
		return nil
	case <-ctx.Done():
		return errors.New("the session did not notice the end of its lease")
	}
}

func elections(ctx context.Context, client *clientv3.Client) error {
	first, second, err := twoSessions(client)
	if err != nil {
		return err
	}
	defer first.Close()
	defer second.Close()
	one := concurrency.NewElection(first, "election")
	two := concurrency.NewElection(second, "election")
	if _, err := one.Leader(ctx); !errors.Is(err, concurrency.ErrElectionNoLeader) {
		return fmt.Errorf("a leader before the election: %v", err)
	}
	observed := concurrency.NewElection(second, "election").Observe(ctx)
	if err := one.Campaign(ctx, "one"); err != nil {
		return err
	}
	elected := make(chan error, 1)
	go func() { elected <- two.Campaign(ctx, "two") }()
	if err := sees(observed, "one"); err != nil {
		return err
	}
	if err := one.Proclaim(ctx, "still one"); err != nil {
		return err
	}
	if err := sees(observed, "still one"); err != nil {
		return err
	}
	select {
	case err := <-elected:
		return fmt.Errorf("two leaders: %v", err)
	default:
	}
	if err := one.Resign(ctx); err != nil {
		return err
	}
	if err := <-elected; err != nil {
		return err
	}
	if err := sees(observed, "two"); err != nil {
		return err
	}
	leader, err := one.Leader(ctx)
	if err != nil || string(leader.Kvs[0].Value) != "two" {
		return fmt.Errorf("not the leader that was elected: %v, %v", leader, err)
	}
	if err := one.Proclaim(ctx, "usurper"); !errors.Is(err, concurrency.ErrElectionNotLeader) {
		return fmt.Errorf("who is no leader proclaims: %v", err)
	}
	return two.Resign(ctx)
}

// sees waits until an observer is told of a leader's value.
func sees(observed <-chan *clientv3.GetResponse, value string) error {
	var seen []string
	for response := range observed {
		got := string(response.Kvs[0].Value)
		if got == value {
			return nil
		}
		seen = append(seen, got)
	}
	return fmt.Errorf("observers never saw %q, but %q", value, seen)
}

func stm(ctx context.Context, client *clientv3.Client) error {
	const accounts, workers, rounds, money = 5, 6, 10, 100
	account := func(number int) string { return fmt.Sprintf("stm/%d", number%accounts) }
	for number := range accounts {
		if _, err := client.Put(ctx, account(number), strconv.Itoa(money)); err != nil {
			return err
		}
	}
	err := each(workers, func(worker int) error {
		for round := range rounds {
			from, to, amount := account(worker+round), account(worker*3+round*2+1), round
			if from == to {
				continue
			}
			_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
				have, err := strconv.Atoi(stm.Get(from))
				if err != nil {
					return err
				}
				has, err := strconv.Atoi(stm.Get(to))
				if err != nil {
					return err
				}
				stm.Put(from, strconv.Itoa(have-amount))
				stm.Put(to, strconv.Itoa(has+amount))
				return nil
			}, concurrency.WithAbortContext(ctx))
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	got, err := client.Get(ctx, "stm/", clientv3.WithPrefix())
	if err != nil {
		return err
	}
	sum := 0
	for _, kv := range got.Kvs {
		value, err := strconv.Atoi(string(kv.Value))
		if err != nil {
			return err
		}
		sum += value
	}
	if sum != accounts*money {
		return fmt.Errorf("%d instead of %d", sum, accounts*money)
	}
	return nil
}

func stmIsolation(ctx context.Context, client *clientv3.Client) error {
	levels := []concurrency.Isolation{
		concurrency.SerializableSnapshot, concurrency.Serializable, concurrency.RepeatableReads,
		concurrency.ReadCommitted,
	}
	for number, level := range levels {
		a, b := fmt.Sprintf("isolation/%d/a", number), fmt.Sprintf("isolation/%d/b", number)
		if _, err := client.Put(ctx, a, "1"); err != nil {
			return err
		}
		tries := 0
		_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
			tries++
			first := stm.Get(a)
			if tries == 1 {
				// Somebody else writes in between.
				if _, err := client.Put(ctx, a, "2"); err != nil {
					return err
				}
			}
			if again := stm.Get(a); again != first && level != concurrency.ReadCommitted {
				return fmt.Errorf("read %q and then %q", first, again)
			}
			stm.Put(b, first)
			return nil
		}, concurrency.WithIsolation(level), concurrency.WithAbortContext(ctx), concurrency.WithPrefetch(a))
		if err != nil {
			return fmt.Errorf("level %d: %w", level, err)
		}
		if level != concurrency.ReadCommitted && tries < 2 {
			return fmt.Errorf("level %d: a conflict was not noticed", level)
		}
	}
	return nil
}

func leases(ctx context.Context, client *clientv3.Client) error {
	granted, err := client.Grant(ctx, 3)
	if err != nil {
		return err
	}
	if _, err := client.Put(ctx, "leased/a", "1", clientv3.WithLease(granted.ID)); err != nil {
		return err
	}
	alive, stop := context.WithCancel(ctx)
	answers, err := client.KeepAlive(alive, granted.ID)
	if err != nil {
		stop()
		return err
	}
	until := time.After(5 * time.Second)
	kept := 0
	for waiting := true; waiting; {
		select {
		case answer, open := <-answers:
			if !open || answer == nil {
				stop()
				return errors.New("the lease ended although it was kept alive")
			}
			kept++
		case <-until:
			waiting = false
		}
	}
	stop()
	if kept < 3 {
		return fmt.Errorf("kept alive only %d times in 5 seconds", kept)
	}
	left, err := client.TimeToLive(ctx, granted.ID, clientv3.WithAttachedKeys())
	if err != nil {
		return err
	}
	if left.TTL < 1 || left.GrantedTTL != 3 || len(left.Keys) != 1 || string(left.Keys[0]) != "leased/a" {
		return fmt.Errorf("not what was granted: %+v", left)
	}
	events := client.Watch(ctx, "leased/", clientv3.WithPrefix(), clientv3.WithPrevKV())
	begin := time.Now()
	for response := range events {
		for _, event := range response.Events {
			if event.Type != clientv3.EventTypeDelete || event.PrevKv == nil || string(event.PrevKv.Value) != "1" {
				return fmt.Errorf("not the end of the key: %v", event)
			}
			if took := time.Since(begin); took > 10*time.Second {
				return fmt.Errorf("the lease of 3 seconds ended after %v", took)
			}
			_, err := client.KeepAliveOnce(ctx, granted.ID)
			if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
				return fmt.Errorf("an ended lease is kept alive: %v", err)
			}
			return nil
		}
	}
	return errors.New("the key outlived its lease")
}

func watches(ctx context.Context, client *clientv3.Client) error {
	const writes = 200
	first := int64(0)
	for number := range writes / 2 {
		put, err := client.Put(ctx, "watched/key", strconv.Itoa(number))
		if err != nil {
			return err
		}
		if number == 0 {
			first = put.Header.Revision
		}
	}
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	events := client.Watch(ctx, "watched/", clientv3.WithPrefix(), clientv3.WithRev(first), clientv3.WithCreatedNotify())
	go func() {
		for number := writes / 2; number < writes; number++ {
			// A missing write is noticed below.
			_, _ = client.Put(ctx, "watched/key", strconv.Itoa(number))
		}
	}()
	next, created := 0, false
	for response := range events {
		if err := response.Err(); err != nil {
			return err
		}
		created = created || response.Created
		for _, event := range response.Events {
			if got := string(event.Kv.Value); got != strconv.Itoa(next) {
				return fmt.Errorf("event %s came where %d was next", got, next)
			}
			next++
		}
		if next == writes {
			if !created {
				return errors.New("never told that the watch is there")
			}
			return nil
		}
	}
	return fmt.Errorf("the watch ended after %d of %d events", next, writes)
}

func manyWatches(ctx context.Context, client *clientv3.Client) error {
	const count = 50
	return errors.Join(each(count, func(number int) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		key := fmt.Sprintf("many/%d", number)
		events := client.Watch(ctx, key, clientv3.WithFilterDelete(), clientv3.WithCreatedNotify())
		<-events
		for _, value := range []string{"a", "b"} {
			if _, err := client.Put(ctx, key, value); err != nil {
				return err
			}
			if _, err := client.Delete(ctx, key); err != nil {
				return err
			}
		}
		var seen []string
		for response := range events {
			for _, event := range response.Events {
				seen = append(seen, event.Type.String()+string(event.Kv.Value))
			}
			if len(seen) >= 2 {
				cancel()
			}
		}
		if fmt.Sprint(seen) != "[PUTa PUTb]" {
			return fmt.Errorf("watch %d saw %v", number, seen)
		}
		return nil
	}), client.RequestProgress(ctx))
}

func knownErrors(ctx context.Context, client *clientv3.Client) error {
	var last int64
	for number := range 5 {
		put, err := client.Put(ctx, "errors/key", strconv.Itoa(number))
		if err != nil {
			return err
		}
		last = put.Header.Revision
	}
	if _, err := client.Compact(ctx, last-1); err != nil {
		return err
	}
	ask := func(name string, want error, err error) error {
		if errors.Is(err, want) {
			return nil
		}
		return fmt.Errorf("%s: %v instead of %v", name, err, want)
	}
	_, compacted := client.Get(ctx, "errors/key", clientv3.WithRev(last-3))
	_, again := client.Compact(ctx, last-1)
	_, future := client.Get(ctx, "errors/key", clientv3.WithRev(last+100))
	_, unknown := client.Revoke(ctx, 4_711)
	_, attached := client.Put(ctx, "errors/key", "x", clientv3.WithLease(4_711))
	_, empty := client.Put(ctx, "", "x")
	_, absent := client.Put(ctx, "errors/absent", "", clientv3.WithIgnoreValue())
	_, large := client.Put(ctx, "errors/large", strings.Repeat("x", 1_900_000))
	twice := clientv3.OpPut("errors/key", "x")
	_, duplicate := client.Txn(ctx).Then(twice, twice).Commit()
	many := make([]clientv3.Op, 129)
	for number := range many {
		many[number] = clientv3.OpGet("errors/key")
	}
	_, over := client.Txn(ctx).Then(many...).Commit()
	_, auth := client.AuthEnable(ctx)
	watched := <-client.Watch(ctx, "errors/key", clientv3.WithRev(1))
	reason := watched.Err()
	if watched.CompactRevision != last-1 {
		reason = fmt.Errorf("%v, at %d instead of %d", reason, watched.CompactRevision, last-1)
	}
	return errors.Join(
		ask("a compacted revision", rpctypes.ErrCompacted, compacted),
		ask("compacting twice", rpctypes.ErrCompacted, again),
		ask("a future revision", rpctypes.ErrFutureRev, future),
		ask("an unknown lease", rpctypes.ErrLeaseNotFound, unknown),
		ask("a put with an unknown lease", rpctypes.ErrLeaseNotFound, attached),
		ask("an empty key", rpctypes.ErrEmptyKey, empty),
		ask("ignore_value of no key", rpctypes.ErrKeyNotFound, absent),
		ask("a large request", rpctypes.ErrRequestTooLarge, large),
		ask("a duplicate key", rpctypes.ErrDuplicateKey, duplicate),
		ask("too many operations", rpctypes.ErrTooManyOps, over),
		ask("auth without a root user", rpctypes.ErrRootUserNotExist, auth),
		ask("a watch of a compacted revision", rpctypes.ErrCompacted, reason),
	)
}

func mirrored(ctx context.Context, client *clientv3.Client) error {
	for number := range 30 {
		if _, err := client.Put(ctx, fmt.Sprintf("mirror/%02d", number), "x"); err != nil {
			return err
		}
	}
	syncer := mirror.NewSyncer(client, "mirror/", 0)
	base, failed := syncer.SyncBase(ctx)
	copied := 0
	for response := range base {
		copied += len(response.Kvs)
	}
	if err := <-failed; err != nil {
		return err
	}
	if copied != 30 {
		return fmt.Errorf("%d keys instead of 30", copied)
	}
	updates := syncer.SyncUpdates(ctx)
	if _, err := client.Put(ctx, "mirror/new", "y"); err != nil {
		return err
	}
	for response := range updates {
		for _, event := range response.Events {
			if string(event.Kv.Key) == "mirror/new" {
				return nil
			}
		}
	}
	return errors.New("the mirror saw no update")
}

func namespaced(ctx context.Context, client *clientv3.Client) error {
	kv := namespace.NewKV(client.KV, "space/")
	watcher := namespace.NewWatcher(client.Watcher, "space/")
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := watcher.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	<-events
	if _, err := client.Put(ctx, "elsewhere", "1"); err != nil {
		return err
	}
	if _, err := kv.Put(ctx, "inside", "2"); err != nil {
		return err
	}
	got, err := kv.Get(ctx, "", clientv3.WithPrefix())
	if err != nil {
		return err
	}
	if got.Count != 1 || string(got.Kvs[0].Key) != "inside" {
		return fmt.Errorf("not its keys: %v", got.Kvs)
	}
	if response := <-events; len(response.Events) != 1 || string(response.Events[0].Kv.Key) != "inside" {
		return fmt.Errorf("not its events: %v", response.Events)
	}
	return nil
}

func resolved(ctx context.Context, client *clientv3.Client) error {
	names, err := endpoints.NewManager(client, "service")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	updates, err := names.NewWatchChannel(ctx)
	if err != nil {
		return err
	}
	if err := names.AddEndpoint(ctx, "service/1", endpoints.Endpoint{Addr: "10.0.0.1:80"}); err != nil {
		return err
	}
	// The first update is what was there: nothing.
	for update := range updates {
		for _, change := range update {
			if change.Key == "service/1" && change.Endpoint.Addr == "10.0.0.1:80" {
				return names.DeleteEndpoint(ctx, "service/1")
			}
		}
	}
	return errors.New("no update of the endpoint")
}

func snapshot(ctx context.Context, client *clientv3.Client) error {
	stream, err := client.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer stream.Close()
	bytes, err := io.Copy(io.Discard, stream)
	if err != nil {
		return err
	}
	// What etcd writes is followed by a hash of 32 bytes; the pages before it are of 512 bytes at least.
	if bytes < 4096 || bytes%512 != 32 {
		return fmt.Errorf("%d bytes are no snapshot", bytes)
	}
	return nil
}

func cluster(ctx context.Context, client *clientv3.Client) error {
	list, err := client.MemberList(ctx)
	if err != nil {
		return err
	}
	status, err := client.Status(ctx, client.Endpoints()[0])
	if err != nil {
		return err
	}
	ids := map[uint64]bool{}
	for _, member := range list.Members {
		ids[member.ID] = true
	}
	if !ids[status.Leader] || !ids[status.Header.MemberId] {
		return fmt.Errorf("leader %x or member %x is not in %v", status.Leader, status.Header.MemberId, list.Members)
	}
	if !strings.HasPrefix(status.Version, "3.") {
		return fmt.Errorf("version %q is not one of etcd 3", status.Version)
	}
	if alarms, err := client.AlarmList(ctx); err != nil || len(alarms.Alarms) > 0 {
		return fmt.Errorf("alarms: %v, %v", alarms, err)
	}
	_, err = client.Defragment(ctx, client.Endpoints()[0])
	return err
}
