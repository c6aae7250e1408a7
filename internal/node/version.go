package node

import "barque.dev/internal/apiserver"

// version is set by the build: -ldflags "-X barque.dev/internal/node.version=…".
var version = "devel"

// Versions returns Barque's version and that of the API it serves.
func Versions() (barque, kubernetes string) { return version, apiserver.KubernetesVersion }
