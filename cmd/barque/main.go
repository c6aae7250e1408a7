// Command barque is the whole platform in one binary: `barque help` lists what it can do.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"barque.dev/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Main(ctx, os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
	stop()
	os.Exit(code)
}
