// Package containerd runs Barque's own containerd: one daemon for each data directory, so that
// several can live on one machine, each in its own network namespace, without knowing of each
// other.
//
// The daemon is a process of its own that outlives the server: it has its own session and
// control group, and when [Runtime.Run] ends it goes on. A server that comes back finds it by
// its pid file and goes on with it; if meanwhile the programs or the configuration changed, it
// is started anew. Neither that nor its death ends a container: each pod has a shim, which
// outlives containerd too. [Runtime.Stop] ends all of it: pods, shims, daemon, mounts and
// control groups.
//
// What is where:
//
//	DataDir/containerd/        images, layers and metadata: kept for good
//	DataDir/containerd.toml    the configuration, written anew at each start
//	DataDir/containerd.log     what the daemon prints, the last 16 to 32 MiB of it
//	DataDir/containerd.pid     which process it is
//	DataDir/cni/net.d/         the network's configuration, by whoever makes the network
//	DataDir/registries/        hosts.toml files for registries, as containerd defines them
//	RunDir/                    sockets, and the state of running pods, which no reboot survives
package containerd

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"barque.dev/internal/runtime/bundle"
	"barque.dev/internal/runtime/cgroup"
)

// Namespace is the containerd namespace that CRI's pods and images are in.
const Namespace = "k8s.io"

// maxSocketDir is how long, in bytes, the path of the directory of the shims' sockets may be.
// containerd's own bound follows from the 108 bytes of a unix socket's address.
const maxSocketDir = 42

// Config says where a daemon lives.
type Config struct {
	// DataDir holds everything that is kept, and is absolute. It becomes a mount with shared
	// propagation, so that volumes below it can be shared with containers in both directions.
	DataDir string

	// RunDir holds sockets and the state of running pods. By default it is DataDir/run, or,
	// where that would make socket addresses too long, a directory in /run/barque whose name
	// is made of DataDir's.
	RunDir string

	// CgroupRoot is the control group below which this node's groups stand: "/" by default.
	// The daemon and the shims are put into the group "runtime" below it ("/barque-runtime"
	// if it is "/"). Unless it is "/", where they could be others' too, [Runtime.Stop] empties
	// and removes the groups of pods ("kubepods") and daemon below it.
	CgroupRoot string

	// Programs are the unpacked programs. Only [Runtime.Stop] works without.
	Programs bundle.Programs

	// CNIBinDirs are searched for network plugins after the programs' own directory.
	CNIBinDirs []string

	// CNIConfDir holds the network's configuration; DataDir/cni/net.d by default.
	CNIConfDir string

	// Log may not be nil.
	Log *slog.Logger
}

// Runtime is one daemon. Its methods may be called by several goroutines; Run only once at a
// time.
type Runtime struct {
	cfg Config
}

// New checks cfg and fills in what is missing. It changes nothing on the machine.
func New(cfg Config) (*Runtime, error) {
	if cfg.Log == nil {
		return nil, errors.New("containerd: Config.Log is missing")
	}
	if !filepath.IsAbs(cfg.DataDir) {
		return nil, fmt.Errorf("containerd: data directory %q: want an absolute path", cfg.DataDir)
	}
	cfg.DataDir = filepath.Clean(cfg.DataDir)
	if cfg.RunDir == "" {
		cfg.RunDir = defaultRunDir(cfg.DataDir)
	}
	if n := len(filepath.Join(cfg.RunDir, "s")); !filepath.IsAbs(cfg.RunDir) || n > maxSocketDir {
		return nil, fmt.Errorf("containerd: run directory %q: want an absolute path of at most %d bytes, because the addresses of unix sockets below it are limited", cfg.RunDir, maxSocketDir-2)
	}
	cfg.CgroupRoot = cgroup.Join(cfg.CgroupRoot)
	if cfg.CNIConfDir == "" {
		cfg.CNIConfDir = filepath.Join(cfg.DataDir, "cni", "net.d")
	}
	return &Runtime{cfg: cfg}, nil
}

// defaultRunDir chooses a run directory that is short enough.
func defaultRunDir(dataDir string) string {
	dir := filepath.Join(dataDir, "run")
	if len(dir)+len("/s") <= maxSocketDir {
		return dir
	}
	sum := sha256.Sum256([]byte(dataDir))
	return filepath.Join("/run/barque", hex.EncodeToString(sum[:6]))
}

// Endpoint is the address of the daemon's socket, which serves CRI and containerd's own API.
func (r *Runtime) Endpoint() string { return "unix://" + r.Socket() }

// Socket is the path of the daemon's socket.
func (r *Runtime) Socket() string { return filepath.Join(r.cfg.RunDir, "containerd.sock") }

// CNIConfDir is where the network's configuration has to be put, as a .conflist file.
// containerd notices when it changes.
func (r *Runtime) CNIConfDir() string { return r.cfg.CNIConfDir }

// RunDir is where the sockets and the state of running pods are.
func (r *Runtime) RunDir() string { return r.cfg.RunDir }

// LogFile is what the daemon prints into.
func (r *Runtime) LogFile() string { return r.data("containerd.log") }

// data returns a path in the data directory.
func (r *Runtime) data(name string) string { return filepath.Join(r.cfg.DataDir, name) }

// stateDir is where containerd keeps the bundles of running containers.
func (r *Runtime) stateDir() string { return filepath.Join(r.cfg.RunDir, "state") }

// daemonGroup is the control group of the daemon and the shims.
func (r *Runtime) daemonGroup() string {
	if r.cfg.CgroupRoot == "/" {
		return "/barque-runtime"
	}
	return cgroup.Join(r.cfg.CgroupRoot, "runtime")
}

// makeDirs makes the directories that containerd expects to find.
func (r *Runtime) makeDirs() error {
	for _, dir := range []struct {
		path string
		mode os.FileMode
	}{
		{r.cfg.DataDir, 0o711},
		{r.data("containerd"), 0o711},
		{r.data("registries"), 0o755},
		{r.cfg.CNIConfDir, 0o755},
		{r.cfg.RunDir, 0o711},
		{filepath.Join(r.cfg.RunDir, "s"), 0o700},
	} {
		if err := os.MkdirAll(dir.path, dir.mode); err != nil {
			return fmt.Errorf("make containerd's directories: %w", err)
		}
	}
	return nil
}
