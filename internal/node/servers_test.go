package node

import (
	"slices"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// TestHolders: with an etcd of the user's, servers are known by their leases, for a while after these ran out.
func TestHolders(t *testing.T) {
	now := time.Unix(1e9, 0)
	lease := func(holder string, age time.Duration) coordinationv1.Lease {
		return coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{HolderIdentity: ptr.To(holder), RenewTime: ptr.To(metav1.NewMicroTime(now.Add(-age)))}}
	}
	got := holders([]coordinationv1.Lease{lease("lives", time.Second), lease("down", 30*time.Minute), lease("gone", 2*time.Hour), {}}, now)
	if want := []string{"lives", "down"}; !slices.Equal(got, want) {
		t.Errorf("servers are %v, want %v", got, want)
	}
}

// TestArrivals: servers that come, or come back, are noticed once.
func TestArrivals(t *testing.T) {
	lease := func(holder string, since int64) coordinationv1.Lease {
		return coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{HolderIdentity: ptr.To(holder), AcquireTime: ptr.To(metav1.NewMicroTime(time.Unix(since, 0)))}}
	}
	known := map[string]time.Time{"self": {}}
	for _, c := range []struct {
		what   string
		leases []coordinationv1.Lease
		want   bool
	}{
		{"itself", []coordinationv1.Lease{lease("self", 1)}, false},
		{"another one", []coordinationv1.Lease{lease("self", 1), lease("other", 2)}, true},
		{"nothing new", []coordinationv1.Lease{lease("self", 1), lease("other", 2)}, false},
		{"one less", []coordinationv1.Lease{lease("self", 1), {}}, false},
		{"the same again, after a break of the network", []coordinationv1.Lease{lease("self", 1), lease("other", 2)}, false},
		{"it started again", []coordinationv1.Lease{lease("self", 1), lease("other", 3)}, true},
		{"itself again", []coordinationv1.Lease{lease("self", 4), lease("other", 3)}, false},
	} {
		if got := arrivals(known, c.leases); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}
