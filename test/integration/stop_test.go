package integration

import (
	"fmt"
	"io"
	"net/http"
	"syscall"
	"testing"

	"k8s.io/client-go/rest"
)

// A leader that is told to stop answers what it was asked before it ends; meanwhile another leads.
func TestStoppingLeaderHandsOver(t *testing.T) {
	c := ownCluster(t)
	ns := c.namespace(t)
	old := c.leader(t)
	config, err := c.MachineConfig(old)
	if err != nil {
		t.Fatal(err)
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	body, send := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "POST", config.Host+"/api/v1/namespaces/"+ns+"/configmaps", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	answered := make(chan error, 1)
	go func() {
		resp, err := client.Do(req)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusCreated {
				err = fmt.Errorf("answered %s", resp.Status)
			}
		}
		answered <- err
	}()
	if _, err := io.WriteString(send, `{"metadata":{"name":"slow"},`); err != nil {
		t.Fatal(err)
	}

	signal(t, old, syscall.SIGTERM)
	witness := c.clientOf(t, c.others(old)[0])
	eventually(t, bound, "another server leads", func() error {
		if name, err := c.holder(t.Context(), witness); err != nil || name == old.Name {
			return fmt.Errorf("%s leads: %w", name, err)
		}
		return nil
	})
	if !old.Running() {
		t.Error("the leader ended before another led, or without its answer")
	}
	if _, err := io.WriteString(send, `"data":{"a":"b"}}`); err != nil {
		t.Fatal(err)
	}
	_ = send.Close()
	if err := <-answered; err != nil {
		t.Errorf("the request under way: %v", err)
	}
}
