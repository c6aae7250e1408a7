package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/podspec"
)

// kept is what the node remembers about a pod that was resized, in a file of the pod's folder: neither
// the API server nor the runtime could tell an agent that takes over.
type kept struct {
	Allocated podspec.Allocation `json:"allocated"`
	// Generation of the definition that was agreed to.
	Generation int64 `json:"generation"`
	// Applied holds the resources that containers were given after they were made, by id.
	Applied map[string]corev1.ResourceRequirements `json:"applied,omitempty"`
}

// apply records what a container was given, and forgets containers that are gone.
func (k *kept) apply(id string, r corev1.ResourceRequirements, observed cri.Pod) {
	applied := maps.Clone(k.Applied)
	if applied == nil {
		applied = map[string]corev1.ResourceRequirements{}
	}
	applied[id] = r
	maps.DeleteFunc(applied, func(id string, _ corev1.ResourceRequirements) bool {
		return !slices.ContainsFunc(observed.Containers, func(c cri.Container) bool { return c.ID == id })
	})
	k.Applied = applied
}

func (m *Manager) keptPath(uid types.UID) string {
	return filepath.Join(m.Volumes.PodDir(uid), "resources.json")
}

// readKept reads what was kept about a pod, and tells whether anything was.
func (m *Manager) readKept(uid types.UID) (k kept, found bool, err error) {
	raw, err := os.ReadFile(m.keptPath(uid))
	if errors.Is(err, fs.ErrNotExist) {
		return kept{}, false, nil
	} else if err != nil {
		return kept{}, false, err
	}
	if err := json.Unmarshal(raw, &k); err != nil {
		return kept{}, false, fmt.Errorf("read %s: %w", m.keptPath(uid), err)
	}
	return k, true, nil
}

// keep changes what is kept, on disk first. Without a change it only sees to it that it is on disk.
func (w *worker) keep(change func(*kept)) error {
	r := &w.resizes
	r.mu.Lock()
	defer r.mu.Unlock()
	if change == nil && r.onDisk {
		return nil
	}
	k := r.kept
	if change != nil {
		change(&k)
	}
	raw, err := json.Marshal(k)
	if err != nil {
		return fmt.Errorf("keep resources of pod %s: %w", w.name, err)
	}
	if err := replaceFile(w.m.keptPath(w.uid), raw); err != nil {
		return fmt.Errorf("keep resources of pod %s: %w", w.name, err)
	}
	r.kept, r.onDisk = k, true
	return nil
}

// replaceFile writes a file so that it has either the old contents or the new, whatever happens.
func replaceFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
