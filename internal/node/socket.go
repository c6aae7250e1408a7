package node

import (
	"fmt"
	"log/slog"
	"path/filepath"

	"barque.dev/internal/runtime/containerd"
)

// containerdDir is the built-in containerd's place in a data directory.
const containerdDir = "agent"

// ContainerdSocket is where the built-in containerd of the machine with the data directory
// listens.
func ContainerdSocket(dataDir string) (string, error) {
	dir, err := filepath.Abs(dataDir)
	if err != nil {
		return "", fmt.Errorf("--data-dir %s: %w", dataDir, err)
	}
	rt, err := containerd.New(containerd.Config{DataDir: filepath.Join(dir, containerdDir), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return "", fmt.Errorf("find the containerd of %s: %w", dir, err)
	}
	return rt.Socket(), nil
}
