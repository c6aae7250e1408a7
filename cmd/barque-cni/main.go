// Command barque-cni is the CNI plugin of a Barque node. The container runtime calls it for
// every pod; see package barque.dev/internal/network/cni.
package main

import (
	"barque.dev/internal/network/cni"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"
)

func main() {
	skel.PluginMainFuncs(cni.Plugin{}.Funcs(), version.PluginSupports("0.4.0", "1.0.0", "1.1.0"), "barque-cni: connects pods to a Barque node")
}
