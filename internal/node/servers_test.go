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
