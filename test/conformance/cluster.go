package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"barque.dev/internal/local"
	"barque.dev/test/conformance/mirror"
	"barque.dev/test/conformance/testimages"
)

// cluster is one that `barque up` runs on this machine.
type cluster struct {
	program, dir string
	servers      int
}

// mirror serves the images of an archive to the cluster's machines until ctx ends, since some specs insist on
// a pull. The address is the
// host's on the cluster's bridge.
func (c cluster) mirror(ctx context.Context, archive string) error {
	state, err := local.Load(c.dir)
	if err != nil {
		return fmt.Errorf("read the cluster's state: %w", err)
	}
	m, err := mirror.Open(archive)
	if err != nil {
		return err
	}
	host := state.Subnet.Masked().Addr().Next()
	listener, err := net.Listen("tcp", netip.AddrPortFrom(host, 0).String())
	if err != nil {
		return errors.Join(fmt.Errorf("listen for pulls: %w", err), m.Close())
	}
	server := &http.Server{Handler: m, ReadHeaderTimeout: time.Minute}
	go func() {
		_ = server.Serve(listener) // until it is closed
		_ = m.Close()
	}()
	context.AfterFunc(ctx, func() { _ = server.Close() })
	for _, machine := range state.Machines {
		registries := filepath.Join(machine.DataDir(), "agent", "registries")
		if err := mirror.Use(registries, testimages.Registry, "http://"+listener.Addr().String()); err != nil {
			return err
		}
	}
	return nil
}

// importedFile is in the cluster's folder, and names the archive that its machines have.
const importedFile = "conformance-images"

// up starts the cluster, or heals it, and brings the images to every machine.
func (c cluster) up(ctx context.Context, archive string) error {
	if err := c.run(ctx, "up", "--no-sample", "--servers", strconv.Itoa(c.servers)); err != nil {
		return err
	}
	// A machine that is added later has none of the images.
	has := fmt.Sprintf("%d %s", c.servers, filepath.Base(archive))
	marker := filepath.Join(c.dir, importedFile)
	if old, err := os.ReadFile(marker); err == nil && string(old) == has {
		return nil
	}
	if err := c.run(ctx, "image", "import", archive); err != nil {
		return err
	}
	return os.WriteFile(marker, []byte(has), 0o600)
}

func (c cluster) down(ctx context.Context) error { return c.run(ctx, "down") }

func (c cluster) kubeconfig() string { return filepath.Join(c.dir, "kubeconfig") }

func (c cluster) run(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, c.program, append(args, "--dir", c.dir)...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("barque %s: %w", strings.Join(args, " "), err)
	}
	return nil
}
