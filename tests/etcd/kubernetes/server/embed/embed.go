// Package embed has as much of etcd's package of that name as Kubernetes' tests use. Where etcd would begin to serve
// within the process, it starts a program: that of $STATEHOUSE, or without it etcd itself, that of $ETCD. A new node
// of Statehouse compiles its first machine; $STATEHOUSE_NEW is the data directory of one that has done so, and has
// done nothing else: each server begins with a copy.
//
// It promises a new server with new data for each call, and that none outlives its test. What a test asks for that it
// does not know does not compile, rather than being ignored.
package embed

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.uber.org/zap"
)

// How long a server may take to get ready: computers that test are busy.
const patience = 5 * time.Minute

// Config is what a server is asked for.
type Config struct {
	Name                string
	Dir                 string
	ListenPeerUrls      []url.URL
	ListenClientUrls    []url.URL
	AdvertisePeerUrls   []url.URL
	AdvertiseClientUrls []url.URL
	InitialCluster      string
	ClientTLSInfo       transport.TLSInfo
	// After so long without an event, a watch that asked for it is told where it is.
	WatchProgressNotifyInterval time.Duration
	// Only of interest within etcd: how large its file may grow, to be faster, and where its log goes.
	QuotaBackendBytes int64
	UnsafeNoFsync     bool
	ZapLoggerBuilder  func(*Config) error
}

// NewConfig asks for nothing.
func NewConfig() *Config { return &Config{Name: "default"} }

// NewZapLoggerBuilder is for etcd's log: the programs write their own.
func NewZapLoggerBuilder(*zap.Logger) func(*Config) error {
	return func(*Config) error { return nil }
}

// InitialClusterFromName has a cluster of one member.
func (c *Config) InitialClusterFromName(name string) string {
	return name + "=" + c.AdvertisePeerUrls[0].String()
}

// Etcd is a program that serves.
type Etcd struct {
	Server  *Server
	process *exec.Cmd
	// Closed when the process has ended, and whether that was wanted.
	ended  chan struct{}
	closed atomic.Bool
	// That it ended by itself.
	failed chan error
}

// Server is what clients know of it.
type Server struct {
	etcd    *Etcd
	ready   chan struct{}
	address string
}

// Cluster has a member.
type Cluster struct{ address string }

// StartEtcd starts the program, and waits until it serves.
func StartEtcd(c *Config) (*Etcd, error) {
	if c.ClientTLSInfo.CertFile != "" {
		return nil, errors.New("no program is asked for TLS here")
	}
	command, err := c.command()
	if err != nil {
		return nil, err
	}
	e := &Etcd{process: command, ended: make(chan struct{}), failed: make(chan error, 1)}
	e.Server = &Server{etcd: e, ready: make(chan struct{})}
	// A test that is killed takes its servers with it.
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.Create(filepath.Join(c.Dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	command.Stderr = log
	told, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, err
	}
	serves := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(told)
		for lines.Scan() {
			if address := servedAt(lines.Bytes()); address != "" {
				serves <- address
			}
		}
		why := command.Wait()
		if !e.closed.Load() {
			e.failed <- fmt.Errorf("%s ended: %v", command.Path, why)
		}
		close(e.ended)
	}()
	select {
	case e.Server.address = <-serves:
		close(e.Server.ready)
		return e, nil
	case err := <-e.failed:
		said, _ := os.ReadFile(log.Name())
		return nil, fmt.Errorf("%w before it was ready\n%s", err, said)
	case <-time.After(patience):
		e.Close()
		return nil, fmt.Errorf("%s is not ready after %v", command.Path, patience)
	}
}

func (c *Config) command() (*exec.Cmd, error) {
	if program := os.Getenv("STATEHOUSE"); program != "" {
		return c.statehouse(program)
	}
	program := os.Getenv("ETCD")
	if program == "" {
		return nil, errors.New("set STATEHOUSE or ETCD to the program to test")
	}
	arguments := []string{
		"--name", c.Name, "--data-dir", filepath.Join(c.Dir, "data"), "--log-outputs", "stdout",
		"--listen-client-urls", c.ListenClientUrls[0].String(),
		"--advertise-client-urls", c.AdvertiseClientUrls[0].String(),
		"--listen-peer-urls", c.ListenPeerUrls[0].String(),
		"--initial-advertise-peer-urls", c.AdvertisePeerUrls[0].String(),
		"--initial-cluster", c.InitialCluster,
	}
	if c.QuotaBackendBytes > 0 {
		arguments = append(arguments, "--quota-backend-bytes", strconv.FormatInt(c.QuotaBackendBytes, 10))
	}
	if c.UnsafeNoFsync {
		arguments = append(arguments, "--unsafe-no-fsync")
	}
	if c.WatchProgressNotifyInterval > 0 {
		arguments = append(arguments, "--watch-progress-notify-interval", c.WatchProgressNotifyInterval.String())
	}
	return exec.Command(program, arguments...), nil
}

func (c *Config) statehouse(program string) (*exec.Cmd, error) {
	file := filepath.Join(c.Dir, "statehouse.toml")
	settings := ""
	if interval := c.WatchProgressNotifyInterval; interval > 0 {
		settings = fmt.Sprintf("[limits]\nwatch_progress_ms = %d\n", interval.Milliseconds())
	}
	if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
		return nil, err
	}
	data := filepath.Join(c.Dir, "data")
	if new := os.Getenv("STATEHOUSE_NEW"); new != "" {
		if err := os.CopyFS(data, os.DirFS(new)); err != nil {
			return nil, err
		}
	}
	none := "127.0.0.1:0"
	return exec.Command(program, "serve", "--json", "--bootstrap", "--config", file,
		"--data-dir", data, "--client", none, "--peer", none, "--etcd", none), nil
}

// The address in the line that says that a server is ready, of either program.
func servedAt(line []byte) string {
	var told struct {
		Ready struct{ Etcd string }
		Msg   string
		// Of etcd.
		Address string
	}
	if json.Unmarshal(line, &told) != nil {
		return ""
	}
	if strings.HasPrefix(told.Msg, "serving client traffic") {
		return told.Address
	}
	return told.Ready.Etcd
}

// Close ends the program.
func (e *Etcd) Close() {
	e.closed.Store(true)
	// It may have ended already.
	_ = e.process.Process.Kill()
	<-e.ended
}

// Err tells that the program ended by itself. Nothing comes of one that was closed.
func (e *Etcd) Err() <-chan error { return e.failed }

// Stop ends the program.
func (s *Server) Stop() { s.etcd.Close() }

// ReadyNotify is closed when clients are served.
func (s *Server) ReadyNotify() <-chan struct{} { return s.ready }

// Cluster is what the server is a member of.
func (s *Server) Cluster() *Cluster { return &Cluster{s.address} }

// ClientURLs are where clients find it.
func (c *Cluster) ClientURLs() []string { return []string{"http://" + c.address} }
