package upgrade

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"k8s.io/apimachinery/pkg/util/version"
)

// A Version is what a program says of itself (`barque version -o json`).
type Version struct {
	Barque     string `json:"barque"`
	Kubernetes string `json:"kubernetes"` // of the API that it serves
	Etcd       string `json:"etcd"`
}

// ErrSkew is wrapped by the errors of [Allowed].
var ErrSkew = errors.New("versions too far apart")

// Allowed tells whether a program of version to may take the place of one of version from, while others in the cluster still are
// of version from: Kubernetes, etcd and Barque go up by one minor version at a time, as upstream's skew policies have it, and
// never back, for what a newer version has stored an older one need not be able to read. A Barque without a version's
// number, which is a development's build, is not compared.
func Allowed(from, to Version) error {
	for _, part := range []struct {
		name     string
		from, to string
		loose    bool
	}{
		{"Kubernetes", from.Kubernetes, to.Kubernetes, false},
		{"etcd", from.Etcd, to.Etcd, false},
		{"Barque", from.Barque, to.Barque, true},
	} {
		a, errA := version.ParseSemantic(part.from)
		b, errB := version.ParseSemantic(part.to)
		if err := errors.Join(errA, errB); err != nil {
			if part.loose {
				continue
			}
			return fmt.Errorf("the version of %s can't be told: %w", part.name, err)
		}
		switch minors := cmp.Compare(a.Major(), b.Major()); {
		case minors > 0 || minors == 0 && b.Minor() < a.Minor():
			return fmt.Errorf("%w: %s would go back from %s to %s, which need not be able to read what is stored now; to go back, restore a snapshot of that version",
				ErrSkew, part.name, part.from, part.to)
		case minors < 0 || b.Minor() > a.Minor()+1:
			return fmt.Errorf("%w: %s would go from %s to %s: go up one minor version at a time", ErrSkew, part.name, part.from, part.to)
		}
	}
	return nil
}

// versionTimeout bounds how long a program may take to tell its version.
const versionTimeout = 30 * time.Second

// VersionOf runs a program, which must be one of Barque for this machine, and returns what it says.
func VersionOf(ctx context.Context, program string) (Version, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	var v Version
	out, err := exec.CommandContext(ctx, program, "version", "--output", "json").Output()
	if err == nil {
		err = json.Unmarshal(out, &v)
	}
	if err == nil && v.Kubernetes == "" {
		err = errors.New("it says nothing of Kubernetes")
	}
	if err != nil {
		return Version{}, fmt.Errorf("it does not tell its version, and is no barque for this machine, or too old a one (%w)", err)
	}
	return v, nil
}
