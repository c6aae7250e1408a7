package node

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"barque.dev/internal/cluster/join"
	"barque.dev/internal/cluster/snapshot"
	"barque.dev/internal/encryption"
	"barque.dev/internal/pki"
	"barque.dev/internal/store/etcd"
	"barque.dev/internal/store/etcd/etcdtest"
)

// lostCluster is one of which there is a snapshot, in Barque's form and in etcd's, and the directory of its keys.
type lostCluster struct {
	archive, raw, keysDir string
	authorities           *pki.Authorities
}

func loseCluster(t *testing.T, state map[string]string) lostCluster {
	t.Helper()
	l := lostCluster{raw: filepath.Join(t.TempDir(), "etcd.db"), keysDir: filepath.Join(t.TempDir(), "pki")}
	var err error
	if l.authorities, err = pki.Create(l.keysDir); err != nil {
		t.Fatal(err)
	}
	member := etcdtest.New(t, 1, nil).Member(0)
	for k, v := range state {
		if _, err := member.Server().Put(t.Context(), &etcdserverpb.PutRequest{Key: []byte(k), Value: []byte(v)}); err != nil {
			t.Fatal(err)
		}
	}
	l.archive = saveArchive(t, l.authorities, member)
	raw, err := os.Create(l.raw)
	if err != nil {
		t.Fatal(err)
	}
	db, err := member.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.WriteTo(raw); err != nil {
		t.Fatal(err)
	}
	if err := raw.Close(); err != nil {
		t.Fatal(err)
	}
	return l
}

func saveArchive(t *testing.T, authorities *pki.Authorities, member *etcd.Member) string {
	t.Helper()
	dir := t.TempDir()
	info, err := snapshot.NewKeeper(snapshot.Config{
		Source: member, Dir: dir, Server: "server-1", Cluster: authorities.Cluster.Hash(),
		Keys: func() (json.RawMessage, error) {
			bundle, err := authorities.Bundle()
			if err != nil {
				return nil, err
			}
			return json.Marshal(bundle)
		},
		Facts: func() join.Facts { return join.Facts{ClusterDomain: "sea"} },
		Check: func(context.Context, string, string) error { return nil }, // Restore checks
		Disk:  func(string) (int64, int64, error) { return 1 << 40, 1 << 40, nil },
	}).Save(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, info.File)
}

// sealedElsewhere is the record of a cluster whose authority is another.
const sealedElsewhere = `{"version":1,"sealedFor":"another","keys":[{"name":"barque-1"}]}`

// TestRestore restores into directories that hold this and that; a path that ends in a slash is a directory.
func TestRestore(t *testing.T) {
	plain := loseCluster(t, map[string]string{"/registry/configmaps/default/a": "v"})
	sealed := loseCluster(t, map[string]string{encryption.RecordKey: sealedElsewhere})
	other := loseCluster(t, nil)
	server := map[string]string{"role": "server\n", "joined": "old\n", "etcd/": "", "agent/": "", "snapshots/": ""}
	for name, tt := range map[string]struct {
		holds   map[string]string
		pki     *lostCluster // whose keys the directory holds
		options RestoreOptions
		refused string
		newKeys bool
		aside   bool
	}{
		"an empty directory":                 {options: RestoreOptions{File: plain.archive}},
		"one with keys of the same cluster":  {pki: &plain, options: RestoreOptions{File: plain.archive}},
		"one with keys of another":           {pki: &other, options: RestoreOptions{File: plain.archive}, refused: "keys of another cluster than the snapshot"},
		"a server's":                         {holds: server, options: RestoreOptions{File: plain.archive}, refused: "or add --replace"},
		"a server's that may be replaced":    {holds: server, pki: &plain, options: RestoreOptions{File: plain.archive, Replace: true}, aside: true},
		"an agent's":                         {holds: map[string]string{"role": "agent\n"}, options: RestoreOptions{File: plain.archive, Replace: true}, refused: "of a barque agent"},
		"somebody else's":                    {holds: map[string]string{"mine.txt": "x"}, options: RestoreOptions{File: plain.archive, Replace: true}, refused: "mine.txt, which is not of barque"},
		"one that is left from a restore":    {holds: map[string]string{restoringMark: "", stageDir + "/": "", "role": "server\n"}, options: RestoreOptions{File: plain.archive}},
		"etcd's snapshot":                    {options: RestoreOptions{File: plain.raw}, newKeys: true},
		"etcd's snapshot, and keys":          {options: RestoreOptions{File: plain.raw, KeysDir: plain.keysDir}},
		"etcd's snapshot, with keys there":   {pki: &plain, options: RestoreOptions{File: plain.raw}},
		"etcd's snapshot, encrypted":         {options: RestoreOptions{File: sealed.raw}, refused: "give them with --keys"},
		"etcd's snapshot, and others' keys":  {options: RestoreOptions{File: sealed.raw, KeysDir: sealed.keysDir}, refused: "sealed for another authority"},
		"a snapshot whose keys open nothing": {options: RestoreOptions{File: sealed.archive}, refused: "sealed for another authority"},
		"a revision that is to come":         {options: RestoreOptions{File: plain.archive, At: 1 << 40}, refused: "--at 1099511627776: the snapshot's history does not hold"},
		"no snapshot":                        {options: RestoreOptions{File: filepath.Join(t.TempDir(), "none")}, refused: "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			fill(t, dir, tt.holds)
			if tt.pki != nil {
				fill(t, dir, map[string]string{"pki/": ""})
				if err := os.CopyFS(filepath.Join(dir, "pki"), os.DirFS(tt.pki.keysDir)); err != nil {
					t.Fatal(err)
				}
			}
			before := tree(t, dir)
			tt.options.DataDir, tt.options.Now = dir, time.Unix(0, 0)
			r, err := Restore(t.Context(), tt.options)
			if tt.refused != "" {
				if err == nil || !strings.Contains(err.Error(), tt.refused) {
					t.Errorf("want %q: %v", tt.refused, err)
				}
				if after := tree(t, dir); after != before {
					t.Errorf("it refused, and changed\n%s to\n%s", before, after)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if r.NewKeys != tt.newKeys || (r.Aside != "") != tt.aside {
				t.Errorf("new keys %v, moved to %q", r.NewKeys, r.Aside)
			}
			isServer(t, dir, plain, tt.newKeys, tt.options.File == plain.archive)
		})
	}
}

// fill makes a directory with files; nothing when there are none.
func fill(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(path+"x"), 0o700)
		if !strings.HasSuffix(name, "/") && err == nil {
			err = os.WriteFile(path, []byte(content), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// tree lists what is below a directory, but for the lock.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if os.IsNotExist(err) || err == nil && info.Name() == "lock" {
			return nil
		}
		if err == nil {
			fmt.Fprintf(&b, "%s %v\n", strings.TrimPrefix(path, dir), info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// isServer checks that a server would start from the directory, and from no half of it.
func isServer(t *testing.T, dir string, l lostCluster, newKeys, facts bool) {
	t.Helper()
	h, err := openHome(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	if err := h.checkRole("server"); err != nil {
		t.Error(err)
	}
	known, err := h.member()
	if want := l.authorities.Cluster.Hash(); err != nil || (known == want) == newKeys {
		t.Errorf("it is of the cluster %q, want %s unless keys are new: %v", known, want, err)
	}
	keys, err := pki.Open(h.path("pki"))
	if newKeys != (err != nil) || !newKeys && keys.Cluster.Hash() != l.authorities.Cluster.Hash() {
		t.Errorf("its keys: %v", err)
	}
	text, _ := os.ReadFile(h.path("facts.json"))
	if strings.Contains(string(text), `"sea"`) != facts {
		t.Errorf("its facts: %q", text)
	}
	if _, err := os.Stat(h.path("etcd", "member", "snap", "db")); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(h.path(restoringMark), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.checkRole("server"); err == nil || !strings.Contains(err.Error(), "half restored") {
		t.Errorf("a server would start from half of it: %v", err)
	}
}
