package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// cluster is one that `barque up` runs on this machine.
type cluster struct {
	program, dir string
	servers      int
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
