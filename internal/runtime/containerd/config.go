package containerd

import (
	"fmt"
	"path/filepath"

	"github.com/pelletier/go-toml/v2"

	"barque.dev/internal/runtime/bundle"
	"barque.dev/internal/runtime/images"
)

// configVersion is the version of containerd's configuration file that render writes.
const configVersion = 4

// machine is what the configuration has to know about the machine.
type machine struct {
	// canRaisePriority says that processes may be protected from the out-of-memory killer
	// (CAP_SYS_RESOURCE).
	canRaisePriority bool
	// appArmor and seLinux say that these security modules work here.
	appArmor, seLinux bool
	// snapshotter is how layers become file systems: "overlayfs", or "native", which copies,
	// where the file system of the data directory cannot be overlaid.
	snapshotter string
}

// table is a table of the configuration file.
type table = map[string]any

// render makes the daemon's configuration file. It is a function of its arguments alone.
func (r *Runtime) render(m machine) ([]byte, error) {
	score := 0
	if m.canRaisePriority {
		score = -999
	}
	config := table{
		"version":   configVersion,
		"root":      r.data("containerd"),
		"state":     r.stateDir(),
		"oom_score": score,
		"imports":   []string{},
		// containerd goes on without parts that do not load, unless they are listed here.
		"required_plugins": []string{"io.containerd.grpc.v1.cri", "io.containerd.server.v1.grpc"},
		"debug":            table{"level": "info", "format": "text"},
		"plugins": table{
			"io.containerd.server.v1.grpc":  table{"address": r.Socket()},
			"io.containerd.server.v1.ttrpc": table{"address": r.Socket() + ".ttrpc"},
			"io.containerd.shim.v1.manager": table{"socket_dir": filepath.Join(r.cfg.RunDir, "s")},
			"io.containerd.internal.v1.opt": table{"path": r.data("opt")},
			"io.containerd.grpc.v1.cri": table{
				"disable_tcp_service":   true,
				"stream_server_address": "127.0.0.1",
				"stream_server_port":    "0",
			},
			"io.containerd.cri.v1.images": table{
				"snapshotter":   m.snapshotter,
				"pinned_images": table{"sandbox": images.PauseName},
				"registry":      table{"config_path": r.data("registries")},
			},
			"io.containerd.cri.v1.runtime": r.renderRuntime(m),
		},
	}
	out, err := toml.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("make containerd's configuration: %w", err)
	}
	return out, nil
}

// renderRuntime makes the part of the configuration that is about pods.
func (r *Runtime) renderRuntime(m machine) table {
	programs := r.cfg.Programs
	return table{
		"restrict_oom_score_adj": !m.canRaisePriority,
		"disable_apparmor":       !m.appArmor,
		"enable_selinux":         m.seLinux,
		"enable_criu":            false,
		// Device plugins that use CDI would need these; nothing here does.
		"cdi_spec_dirs": []string{},
		// What belongs to the node is below its own directories, not in /run/netns.
		"netns_mounts_under_state_dir": true,
		"enable_unprivileged_ports":    true,
		"enable_unprivileged_icmp":     true,
		// CPU usage over the last seconds is computed from samples; each costs every shim a
		// call.
		"stats_collect_period": "10s",
		"cni": table{
			"bin_dirs":              append([]string{programs.Dir}, r.cfg.CNIBinDirs...),
			"conf_dir":              r.cfg.CNIConfDir,
			"max_conf_num":          1,
			"use_internal_loopback": true,
		},
		"containerd": table{
			"default_runtime_name": "runc",
			"runtimes": table{
				"runc": table{
					"runtime_type": "io.containerd.runc.v2",
					"runtime_path": programs.Path(bundle.Shim),
					"options": table{
						"BinaryName":    programs.Path(bundle.Runc),
						"Root":          filepath.Join(r.cfg.RunDir, "runc"),
						"SystemdCgroup": false,
					},
				},
			},
		},
	}
}
