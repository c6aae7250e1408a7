package node

import (
	"strings"
	"testing"
)

func TestDisabledPlugins(t *testing.T) {
	for name, want := range map[string]string{
		"ServiceAccount": "", "ResourceQuota": "", "MutatingAdmissionWebhook": "", "ValidatingAdmissionPolicy": "",
		// What keeps namespaces' life and RBAC's promises is no choice.
		"NamespaceLifecycle": "choose among", "Escalation": "choose among", "": "choose among",
	} {
		err := (&ServerConfig{DisableAdmission: []string{"LimitRanger", name}}).checkPlugins()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", name, err, want)
		}
	}
	s := &Server{}
	if s.quota() == nil {
		t.Error("nobody charges quotas")
	}
	s.cfg.DisableAdmission = []string{"ResourceQuota"}
	if s.quota() != nil {
		t.Error("quotas are charged, though their plugin is disabled")
	}
}
