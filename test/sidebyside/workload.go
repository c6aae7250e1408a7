package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// benchmark is one of upstream's scheduler_perf, as its YAML says it.
type benchmark struct {
	Name                   string `json:"name"`
	DefaultPodTemplatePath string `json:"defaultPodTemplatePath"`
	Steps                  []step `json:"workloadTemplate"`
	Workloads              []struct {
		Name   string         `json:"name"`
		Params map[string]any `json:"params"`
	} `json:"workloads"`

	dir string // that its paths are relative to
}

// step is one operation; which fields count depends on the opcode.
type step struct {
	Opcode           string   `json:"opcode"`
	Count            int      `json:"count"`
	CountParam       string   `json:"countParam"`
	NodeTemplatePath string   `json:"nodeTemplatePath"`
	PodTemplatePath  string   `json:"podTemplatePath"`
	Namespace        string   `json:"namespace"`
	Prefix           string   `json:"prefix"`
	CollectMetrics   bool     `json:"collectMetrics"`
	Mode             string   `json:"mode"`
	TemplatePaths    []string `json:"templatePaths"`
	Interval         int      `json:"intervalMilliseconds"`
	Label            *struct {
		Key    string   `json:"labelKey"`
		Values []string `json:"labelValues"`
	} `json:"labelNodePrepareStrategy"`
}

// upstreamPerf is the folder of scheduler_perf in the module that stock is built of.
func upstreamPerf() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes").Output()
	if err != nil {
		return "", fmt.Errorf("find the module k8s.io/kubernetes: %w", err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "test", "integration", "scheduler_perf"), nil
}

// readBenchmark reads one benchmark of a folder's file.
func readBenchmark(folder, name string) (*benchmark, error) {
	dir, err := upstreamPerf()
	if err != nil {
		return nil, err
	}
	dir = filepath.Join(dir, folder)
	data, err := os.ReadFile(filepath.Join(dir, "performance-config.yaml"))
	if err != nil {
		return nil, err
	}
	var all []benchmark
	if err := yaml.Unmarshal(data, &all); err != nil {
		return nil, fmt.Errorf("read %s: %w", dir, err)
	}
	for _, b := range all {
		if b.Name == name {
			b.dir = dir
			return &b, nil
		}
	}
	return nil, fmt.Errorf("%s has no benchmark %s", dir, name)
}

// counts are the numbers of one of the benchmark's workloads.
func (b *benchmark) counts(workload string) (map[string]int, error) {
	for _, w := range b.Workloads {
		if w.Name != workload {
			continue
		}
		counts := map[string]int{}
		for name, v := range w.Params {
			if n, ok := v.(float64); ok {
				counts["$"+name] = int(n)
			}
		}
		return counts, nil
	}
	return nil, fmt.Errorf("%s has no workload %s", b.Name, workload)
}

// template reads an object that steps make copies of.
func (b *benchmark) template(path string) (map[string]any, error) {
	file := filepath.Join(b.dir, path)
	if _, err := os.Stat(file); os.IsNotExist(err) {
		file = filepath.Join(filepath.Dir(b.dir), path) // some are relative to the folder above
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var obj map[string]any
	if err := yaml.Unmarshal(data, &obj); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return obj, nil
}

// within descends into nested maps, and makes those that are missing.
func within(obj map[string]any, path ...string) map[string]any {
	for _, p := range path {
		next, ok := obj[p].(map[string]any)
		if !ok {
			next = map[string]any{}
			obj[p] = next
		}
		obj = next
	}
	return obj
}

// priorityClass takes the priority out of a pod's definition and names a class of that priority
// instead, which is how users ask for it. It returns the class's value, 0 for none.
func priorityClass(pod map[string]any) int {
	spec := within(pod, "spec")
	value, ok := spec["priority"].(float64)
	if !ok || value == 0 {
		return 0
	}
	delete(spec, "priority")
	spec["priorityClassName"] = fmt.Sprintf("priority-%d", int(value))
	return int(value)
}

// named is the object under a name of its own.
func named(obj map[string]any, name string) ([]byte, error) {
	meta := within(obj, "metadata")
	delete(meta, "generateName")
	meta["name"] = name
	return json.Marshal(obj)
}
