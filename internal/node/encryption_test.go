package node

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"barque.dev/internal/encryption"
	"barque.dev/internal/pki"
)

func TestReaders(t *testing.T) {
	now := time.Now()
	lease := func(holder string, age time.Duration) coordinationv1.Lease {
		renewed := metav1.NewMicroTime(now.Add(-age))
		return coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder, RenewTime: &renewed}}
	}
	leases := []coordinationv1.Lease{
		lease("a", time.Second), lease("b", 10*time.Minute), lease("stock", time.Second), lease("gone", 10*time.Minute),
		lease("long gone", 2*leaseMemory), {},
	}
	for what, c := range map[string]struct {
		members []string
		memory  time.Duration
		want    []encryption.Server
	}{
		"members, and who else lives": {[]string{"a", "b", "c"}, aliveWithin, []encryption.Server{
			{Name: "a", Alive: true}, {Name: "b"}, {Name: "c"}, {Name: "stock", Alive: true},
		}},
		"an etcd of the user's": {nil, leaseMemory, []encryption.Server{
			{Name: "a", Alive: true}, {Name: "b"}, {Name: "stock", Alive: true}, {Name: "gone"},
		}},
	} {
		if got := readers(c.members, leases, c.memory, now); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, want %+v", what, got, c.want)
		}
	}
}

// What is missing for a configuration is said.
func TestEncryptionConfigurationOfNothing(t *testing.T) {
	dir := t.TempDir()
	if _, err := EncryptionConfiguration(dir); err == nil || !strings.Contains(err.Error(), dir+" is not the data directory of a server") {
		t.Errorf("of an empty directory: %v", err)
	}
	if _, err := pki.Create(filepath.Join(dir, "pki")); err != nil {
		t.Fatal(err)
	}
	if _, err := EncryptionConfiguration(dir); err == nil || !strings.Contains(err.Error(), "has been ready") {
		t.Errorf("of a server that never was ready: %v", err)
	}
}

// A directory may hold the keys that an administrator brought, and nothing of anybody else's.
func TestBroughtKeys(t *testing.T) {
	for name, fine := range map[string]bool{"pki": true, "etcd": true, "photos": false} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		h, err := openHome(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.checkRole("server"); (err == nil) != fine {
			t.Errorf("with %s: %v", name, err)
		}
		h.close()
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Errorf("%s is gone: %v", name, err)
		}
	}
}
