package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"barque.dev/test/conformance/suite"
)

// smokeSpecs are a few of every area that need seconds each.
func smokeSpecs() []string {
	return []string{
		"[sig-api-machinery] Watchers should observe add, update, and delete watch notifications on configmaps [Conformance]",
		"[sig-api-machinery] Garbage collector should delete pods created by rc when not orphaning [Conformance]",
		"[sig-apps] ReplicaSet should serve a basic image on each replica with a public image [Conformance]",
		"[sig-apps] Deployment deployment should support proportional scaling [Conformance]",
		"[sig-auth] ServiceAccounts should mount an API token into pods [Conformance]",
		"[sig-cli] Kubectl client Kubectl version should check is all data is printed [Conformance]",
		"[sig-network] DNS should provide DNS for services [Conformance]",
		"[sig-network] Services should serve a basic endpoint from pods [Conformance]",
		"[sig-node] Pods should get a host IP [Conformance] [NodeConformance]",
		"[sig-node] Probing container should be restarted with a exec \"cat /tmp/health\" liveness probe [Conformance] [NodeConformance]",
		"[sig-storage] Projected configMap should be consumable from pods in volume [Conformance] [NodeConformance]",
		"[sig-storage] EmptyDir volumes should support (root,0644,tmpfs) [LinuxOnly] [Conformance] [NodeConformance]",
	}
}

// smokeImages are what those specs run. Making all images takes minutes more.
func smokeImages() []string {
	return []string{"agnhost", "busybox", "glibc-dns-testing", "nginx", "pause"}
}

// smoke is `make conformance-smoke`: it fails unless all its specs pass, and writes no page.
func (c *command) smoke(ctx context.Context) (err error) {
	r, specs, err := c.prepare(ctx, smokeImages()...)
	defer func() { err = errors.Join(err, c.end()) }()
	if err != nil {
		return err
	}
	wanted := smokeSpecs()
	chosen := slices.DeleteFunc(specs, func(s suite.Spec) bool { return !slices.Contains(wanted, s.Name) })
	if len(chosen) != len(wanted) {
		return fmt.Errorf("upstream has only %d of the %d specs", len(chosen), len(wanted))
	}
	if err := suite.Clear(r.Dir); err != nil {
		return err
	}
	results, err := suite.Load(r.Dir)
	if err != nil {
		return err
	}
	if err := r.RunTogether(ctx, chosen, results); err != nil {
		return err
	}
	for _, s := range chosen {
		if result := results.Specs[s.Name]; result.State != suite.Passed {
			err = errors.Join(err, fmt.Errorf("%s: %s: %s", s.Name, result.State, result.Error))
		}
	}
	return err
}
