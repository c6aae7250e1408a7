package detect_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"barque.dev/internal/cluster/detect"
	"barque.dev/internal/store"
	"barque.dev/internal/store/etcd"
	"barque.dev/internal/store/etcd/etcdtest"
)

// childEnv makes the test's program a server.
const childEnv = "BARQUE_TEST_SERVER"

func TestMain(m *testing.M) {
	if cfg := os.Getenv(childEnv); cfg != "" {
		if err := serve(cfg); err != nil {
			fmt.Fprintln(os.Stderr, "server:", err)
			os.Exit(1)
		}
		return
	}
	etcdtest.Main(m)
}

// childConfig is a server's, given by its environment.
type childConfig struct {
	Etcd    etcd.Config
	Control string // where it takes commands
	Listen  string // the detector's
	Detect  bool
}

// serve runs etcd, store and detector, and answers commands until it is killed.
func serve(text string) error {
	var cfg childConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	ctx := context.Background()
	cfg.Etcd.Log = slog.New(slog.DiscardHandler)
	etcd.TunePeerStreams()
	m, err := etcd.Start(ctx, cfg.Etcd)
	if err != nil {
		return err
	}
	d, err := detect.New(detect.Config{Member: m, Listen: cfg.Listen, Log: cfg.Etcd.Log})
	if err != nil {
		return err
	}
	if cfg.Detect {
		go d.Run(ctx)
	}
	s, err := store.Open(ctx, store.Config{Backend: m})
	if err != nil {
		return err
	}
	t, err := s.Register(store.Schema{
		Prefix: "/registry/things/",
		Decode: func([]byte, int64) (runtime.Object, error) { return &unstructured.Unstructured{}, nil },
	})
	if err != nil {
		return err
	}
	go s.Run(ctx)
	l, err := net.Listen("tcp", cfg.Control)
	if err != nil {
		return err
	}
	srv := &commands{member: m, store: s, table: t, listen: cfg.Listen}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go srv.answer(ctx, conn)
	}
}

type commands struct {
	member *etcd.Member
	store  *store.Store
	table  *store.Table
	listen string
}

func (c *commands) answer(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	for in := bufio.NewScanner(conn); in.Scan(); {
		if _, err := fmt.Fprintln(conn, c.do(ctx, in.Text())); err != nil {
			return
		}
	}
}

func (c *commands) do(ctx context.Context, line string) string {
	verb, name, _ := strings.Cut(line, " ")
	switch verb {
	case "create": // a name is only ever created by one client, so that it may ask twice
		_, err := c.table.Create(ctx, store.Key{Name: name}, []byte(name), store.WriteOptions{})
		if err != nil && !errors.Is(err, store.ErrExists) {
			return "error " + err.Error()
		}
		return "ok"
	case "leader":
		id := c.member.Leader()
		for _, mb := range c.member.Members() {
			if mb.ID == id {
				return mb.Name
			}
		}
		return ""
	case "watchers":
		host, port, err := net.SplitHostPort(c.listen)
		if err != nil {
			return err.Error()
		}
		n, err := connections(host, port)
		if err != nil {
			return err.Error()
		}
		return fmt.Sprint(n)
	case "read":
		if _, err := c.store.ReadIndex(ctx); err != nil {
			return "error " + err.Error()
		}
		var names []string
		c.table.Snapshot().Ascend("", store.Key{}, func(e *store.Entry) bool { names = append(names, e.Key().Name); return true })
		return "ok " + strings.Join(names, " ")
	}
	return "error unknown command " + line
}
