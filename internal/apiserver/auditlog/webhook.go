package auditlog

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/util/webhook"
	auditwebhook "k8s.io/apiserver/plugin/pkg/audit/webhook"
)

// hook sends events to a server, and repeats what that does not take, as upstream's backend does. Upstream's goes on for
// minutes, whatever happens; this one can be told to give up, so that a server can stop whose webhook is gone.
type hook struct {
	*webhook.GenericWebhook
	life context.Context
	end  context.CancelFunc
}

// newHook reads a kubeconfig. first is how long to wait before a first retry.
func newHook(config string, first time.Duration) (*hook, error) {
	client, err := webhook.LoadKubeconfig(config, nil)
	if err != nil {
		return nil, err
	}
	generic, err := webhook.NewGenericWebhook(audit.Scheme, audit.Codecs, client,
		[]schema.GroupVersion{auditv1.SchemeGroupVersion}, webhook.DefaultRetryBackoffWithInitialDelay(first))
	if err != nil {
		return nil, err
	}
	h := &hook{GenericWebhook: generic}
	h.life, h.end = context.WithCancel(context.Background())
	return h, nil
}

// ProcessEvents implements audit.Sink. What is lost is counted and told.
func (h *hook) ProcessEvents(events ...*auditinternal.Event) bool {
	list := &auditinternal.EventList{Items: make([]auditinternal.Event, 0, len(events))}
	for _, e := range events {
		list.Items = append(list.Items, *e)
	}
	err := webhook.WithExponentialBackoff(h.life, h.RetryBackoff,
		func() error { return h.RestClient.Post().Body(list).Do(h.life).Error() },
		func(err error) bool { return err != nil })
	if err != nil {
		audit.HandlePluginError(auditwebhook.PluginName, err, events...)
	}
	return err == nil
}

// Run implements audit.Backend. There is nothing to be run.
func (h *hook) Run(<-chan struct{}) error { return nil }

// Shutdown implements audit.Backend. Those who call ProcessEvents wait until their events are sent.
func (h *hook) Shutdown() { h.end() }

func (h *hook) String() string { return auditwebhook.PluginName }
