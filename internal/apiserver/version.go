package apiserver

import (
	"fmt"
	"net/http"
	"runtime"

	apiversion "k8s.io/apimachinery/pkg/version"
)

// KubernetesVersion is the release whose API is served; that of the module k8s.io/kubernetes.
const KubernetesVersion = "v1.37.1"

// Version is what /version says: the Kubernetes release whose API this is, as clients compare versions by
// that, with a suffix (build metadata, in semantic versioning) that says whose server it is.
func Version() apiversion.Info {
	var major, minor, patch int
	if _, err := fmt.Sscanf(KubernetesVersion, "v%d.%d.%d", &major, &minor, &patch); err != nil {
		panic(err) // the constant is malformed, which a test would notice
	}
	number := fmt.Sprint(minor)
	return apiversion.Info{
		Major: fmt.Sprint(major), Minor: number,
		EmulationMajor: fmt.Sprint(major), EmulationMinor: number,
		MinCompatibilityMajor: fmt.Sprint(major), MinCompatibilityMinor: fmt.Sprint(minor - 1),
		GitVersion:   KubernetesVersion + "+barque",
		GitTreeState: "clean",
		GoVersion:    runtime.Version(),
		Compiler:     runtime.Compiler,
		Platform:     runtime.GOOS + "/" + runtime.GOARCH,
	}
}

func (s *Server) serveVersion(w http.ResponseWriter, req *http.Request) error {
	return sendDocument(w, req, s.cfg.Version)
}
