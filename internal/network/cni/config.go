package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

const (
	// PluginType is the name of the program.
	PluginType = "barque-cni"
	// NetworkName is the network's name in the configuration list.
	NetworkName = "barque"
	// ConfigFile is the name of the configuration list; early in the order in which runtimes
	// choose.
	ConfigFile = "10-barque.conflist"
	// SpecVersion is the version of the configuration list.
	SpecVersion = "1.1.0"
)

// Network is what the plugin needs to know of the node. It is the plugin's part of the
// configuration list.
type Network struct {
	// Bridge is the name of the node's bridge, at most 15 bytes.
	Bridge string `json:"bridge"`
	// PodCIDR is the node's range. Its first address is the bridge's.
	PodCIDR netip.Prefix `json:"podCIDR"`
	// MTU of the pods' interfaces, in bytes.
	MTU int `json:"mtu"`
	// StateDir is where leases are kept.
	StateDir string `json:"stateDir"`
}

// Gateway is the bridge's address with the length of the node's range.
func (n Network) Gateway() netip.Prefix {
	return netip.PrefixFrom(n.PodCIDR.Masked().Addr().Next(), n.PodCIDR.Bits())
}

func (n Network) validate() error {
	switch {
	case n.Bridge == "" || len(n.Bridge) > 15:
		return fmt.Errorf("bridge name %q is not 1 to 15 bytes long", n.Bridge)
	case !n.PodCIDR.IsValid() || !n.PodCIDR.Addr().Is4() || n.PodCIDR.Bits() > 29:
		return fmt.Errorf("pod range %q is not an IPv4 range of at least 8 addresses", n.PodCIDR)
	case n.MTU < 576 || n.MTU > 65535:
		return fmt.Errorf("MTU %d is not between 576 and 65535", n.MTU)
	case !filepath.IsAbs(n.StateDir):
		return fmt.Errorf("state directory %q is not an absolute path", n.StateDir)
	}
	return nil
}

// PortMapping is a host port as runtimes hand it over (capability portMappings).
type PortMapping struct {
	HostPort      uint16 `json:"hostPort"`
	ContainerPort uint16 `json:"containerPort"`
	Protocol      string `json:"protocol"` // tcp, udp or sctp, in any case; empty means tcp
	HostIP        string `json:"hostIP,omitempty"`
}

// config is what the plugin gets on standard input.
type config struct {
	types.NetConf
	Network
	RuntimeConfig struct {
		PortMappings []PortMapping `json:"portMappings,omitempty"`
	} `json:"runtimeConfig"`
}

func parseConfig(args *skel.CmdArgs) (*config, error) {
	var c config
	if err := json.Unmarshal(args.StdinData, &c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "network configuration not understood", err.Error())
	}
	if err := c.validate(); err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "network configuration not usable", err.Error())
	}
	if err := version.ParsePrevResult(&c.NetConf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "previous result not understood", err.Error())
	}
	return &c, nil
}

// podName reads the pod's namespace and name from CNI_ARGS; empty when the runtime gives none.
func podName(args string) (namespace, name string) {
	for pair := range strings.SplitSeq(args, ";") {
		switch key, value, _ := strings.Cut(pair, "="); key {
		case "K8S_POD_NAMESPACE":
			namespace = value
		case "K8S_POD_NAME":
			name = value
		}
	}
	return namespace, name
}

// WriteConfig writes the configuration list into dir, which the runtime watches. It is written
// atomically, and only when it differs from what is there.
func WriteConfig(dir string, n Network) error {
	if err := n.validate(); err != nil {
		return fmt.Errorf("write CNI configuration: %w", err)
	}
	plugin := struct {
		Type string `json:"type"`
		Network
		Capabilities map[string]bool `json:"capabilities"`
	}{PluginType, n, map[string]bool{"portMappings": true}}
	list := map[string]any{"cniVersion": SpecVersion, "name": NetworkName, "plugins": []any{plugin}}
	data, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return fmt.Errorf("encode CNI configuration: %w", err)
	}
	path := filepath.Join(dir, ConfigFile)
	if have, err := os.ReadFile(path); err == nil && string(have) == string(data) {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write CNI configuration: %w", err)
	}
	return writeFile(path, data, true)
}

// RemoveConfig deletes the configuration list from dir.
func RemoveConfig(dir string) error {
	if err := os.Remove(filepath.Join(dir, ConfigFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove CNI configuration: %w", err)
	}
	return nil
}

// writeFile replaces a file as a whole: a reader sees the former contents or the new ones; with durable
// set, also after the machine lost power.
func writeFile(path string, data []byte, durable bool) error {
	// A leading dot keeps the file from readers that list the directory.
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(f.Name()) // gone already when all went well
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o644))
	if durable {
		err = errors.Join(err, f.Sync())
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
