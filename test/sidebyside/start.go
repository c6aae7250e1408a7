package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"barque.dev/test/proc"
	"barque.dev/test/report"
)

// measureStart looks at a plane that was just started.
func measureStart(ctx context.Context, r *run) error {
	r.add(report.Figure{Name: "start to ready", Unit: "s", Better: "less", Includes: "from nothing until /readyz of the API server says so; stock's loops start after that"}, r.took.Seconds())
	l := newLoader(r.plane, 1)
	defer l.close()
	if err := readEverything(ctx, l.clients[0]); err != nil {
		return err
	}
	if err := sleep(ctx, r.pause(30*time.Second)); err != nil {
		return err
	}
	m, err := proc.Weigh(r.plane.PIDs()...)
	if err != nil {
		return err
	}
	r.add(report.Figure{Name: "idle private memory", Unit: "MB", Better: "less", Includes: "all processes, after all of OpenAPI and a list of every kind were read"}, m.Private)
	r.add(report.Figure{Name: "idle proportional memory", Unit: "MB", Better: "less", Includes: "with the pages of the programs"}, m.Proportional)
	r.say("ready after %v, %.0f MB private", r.took.Round(time.Millisecond), m.Private)
	return nil
}

// measureIdle is what a plane costs that nobody uses.
func measureIdle(ctx context.Context, r *run) error {
	l := newLoader(r.plane, 1)
	defer l.close()
	if err := readEverything(ctx, l.clients[0]); err != nil {
		return err
	}
	pause := r.pause(10 * time.Minute)
	cpu, err := r.plane.spent(func() error { return sleep(ctx, pause) })
	if err != nil {
		return err
	}
	m, err := proc.Weigh(r.plane.PIDs()...)
	if err != nil {
		return err
	}
	spent := cpu.Seconds()
	what := fmt.Sprintf("over %v without clients, after all of OpenAPI and a list of every kind were read", pause)
	r.add(report.Figure{Name: "CPU while idle", Unit: "s", Better: "less", Includes: what}, spent)
	r.add(report.Figure{Name: "share of a core while idle", Unit: "%", Better: "less", Includes: what}, 100*spent/pause.Seconds())
	r.add(report.Figure{Name: "private memory then", Unit: "MB", Better: "less", Includes: "all processes"}, m.Private)
	r.say("%.1f s of CPU in %v, %.0f MB private then", spent, pause, m.Private)
	return nil
}

// pause is how long a plane is left alone.
func (r *run) pause(full time.Duration) time.Duration {
	if r.quick {
		return 5 * time.Second
	}
	return full
}

// sleep waits, unless ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// readEverything fetches OpenAPI in both versions and lists every kind.
func readEverything(ctx context.Context, c *lean) error {
	var paths struct {
		Paths map[string]struct {
			URL string `json:"serverRelativeURL"`
		} `json:"paths"`
	}
	if err := c.ask(ctx, "/openapi/v3", &paths); err != nil {
		return err
	}
	for _, p := range paths.Paths {
		if _, err := c.do(ctx, http.MethodGet, p.URL, mediaJSON, "", nil, http.StatusOK); err != nil {
			return err
		}
	}
	if _, err := c.do(ctx, http.MethodGet, "/openapi/v2", mediaJSON, "", nil, http.StatusOK); err != nil {
		return err
	}
	var groups struct {
		Groups []struct {
			PreferredVersion struct {
				GroupVersion string `json:"groupVersion"`
			} `json:"preferredVersion"`
		} `json:"groups"`
	}
	if err := c.ask(ctx, "/apis", &groups); err != nil {
		return err
	}
	versions := []string{"/api/v1"}
	for _, g := range groups.Groups {
		versions = append(versions, "/apis/"+g.PreferredVersion.GroupVersion)
	}
	for _, v := range versions {
		if err := listKinds(ctx, c, v); err != nil {
			return err
		}
	}
	return nil
}

// listKinds lists every kind of one version that can be listed.
func listKinds(ctx context.Context, c *lean, version string) error {
	var kinds struct {
		Resources []struct {
			Name  string   `json:"name"`
			Verbs []string `json:"verbs"`
		} `json:"resources"`
	}
	if err := c.ask(ctx, version, &kinds); err != nil {
		return err
	}
	for _, k := range kinds.Resources {
		for _, verb := range k.Verbs {
			if verb != "list" {
				continue
			}
			if _, err := c.do(ctx, http.MethodGet, version+"/"+k.Name, mediaJSON, "", nil, http.StatusOK); err != nil {
				return err
			}
		}
	}
	return nil
}

// measureMemory is what a plane weighs after rounds of pods that were created, listed and deleted.
func measureMemory(ctx context.Context, r *run) error {
	l := newLoader(r.plane, connections)
	defer l.close()
	total := r.scale(listed)
	for round := range 3 {
		first := round * total
		if _, err := createPods(ctx, l, 16, first, total); err != nil {
			return err
		}
		if _, err := l.each(2, 6, func(c *lean, i int) error {
			_, err := c.do(ctx, http.MethodGet, podsPath, []string{mediaJSON, mediaProtobuf}[i%2], "", nil, http.StatusOK)
			return err
		}); err != nil {
			return err
		}
		if _, err := l.each(16, total, func(c *lean, i int) error { return deletePod(ctx, c, first+i) }); err != nil {
			return err
		}
	}
	peak, err := proc.Weigh(r.plane.PIDs()...)
	if err != nil {
		return err
	}
	if err := expectPods(ctx, l, "", 0); err != nil {
		return err
	}
	pause := r.pause(time.Minute)
	if err := sleep(ctx, pause); err != nil {
		return err
	}
	after, err := proc.Weigh(r.plane.PIDs()...)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("3 rounds of %d pods created, listed and deleted", total)
	r.add(report.Figure{Name: "private memory right after load", Unit: "MB", Better: "less", Includes: what}, peak.Private)
	r.add(report.Figure{Name: "private memory a while after load", Unit: "MB", Better: "less", Includes: fmt.Sprintf("%v later", pause)}, after.Private)
	r.add(report.Figure{Name: "proportional memory a while after load", Unit: "MB", Better: "less", Includes: "with the pages of the programs"}, after.Proportional)
	r.say("%.0f MB private after load, %.0f MB later", peak.Private, after.Private)
	return nil
}
