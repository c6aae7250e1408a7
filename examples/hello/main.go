// Command hello is Barque's sample application: a web server that shows who and where it is,
// so that one can see a load balancer, a rolling update, a changed ConfigMap or a failed
// machine at work.
//
//	/         a page for browsers, plain text for everything else
//	/info     the same as JSON
//	/healthz  200 as long as the process works
//	/readyz   200 when requests may come, 503 from the moment it is told to stop
//
// Told to stop by SIGTERM, it first becomes unready, goes on serving for a moment, so that
// whoever balances load can notice, finishes the requests under way, and ends.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// version is set when the program is built: -ldflags '-X main.version=v2'.
var version = "dev"

func main() {
	var o options
	flag.StringVar(&o.address, "address", ":8080", "address to listen on")
	flag.StringVar(&o.config, "config", "/etc/hello/config", "directory of a mounted ConfigMap with the key message")
	flag.StringVar(&o.secret, "secret", "/etc/hello/secret", "directory of a mounted Secret with the key token")
	flag.DurationVar(&o.drain, "drain", 3*time.Second, "time to go on serving after being told to stop")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, o, slog.New(slog.NewJSONHandler(os.Stdout, nil))); err != nil {
		fmt.Fprintln(os.Stderr, "hello:", err)
		os.Exit(1)
	}
}

// options are what the command line says.
type options struct {
	address, config, secret string
	drain                   time.Duration
}

// run serves until ctx ends, and then until no request is under way.
func run(ctx context.Context, o options, log *slog.Logger) error {
	app := newApp(o, os.Getenv, log)
	server := &http.Server{Addr: o.address, Handler: app, ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	log.Info("serving", "address", o.address, "version", version)
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	log.Info("stopping", "drain", o.drain.String())
	app.stopping.Store(true)
	select {
	case err := <-failed:
		return err
	case <-time.After(o.drain):
	}
	limit, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := server.Shutdown(limit); err != nil {
		return fmt.Errorf("finish requests: %w", err)
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
