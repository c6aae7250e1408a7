package auditlog_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"barque.dev/internal/apiserver/auditlog"
)

// TestAbandon: events that a webhook has not taken are lost once it is given up, which is counted; nothing is sent after that.
func TestAbandon(t *testing.T) {
	lost := failures(t)
	asked := make(chan struct{}, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		http.Error(w, "not now", http.StatusServiceUnavailable)
	}))
	defer server.Close()
	l, stop := open(t, options(t, func(o *auditlog.Options) {
		o.Webhook.ConfigFile, o.Webhook.InitialBackoff, o.Webhook.Mode = webhookConfig(t, server.URL), time.Hour, auditlog.BlockingStrict
	}), io.Discard)
	accepted := make(chan bool)
	go func() { accepted <- l.Backend.ProcessEvents(event("a"), event("b")) }()
	<-asked
	l.Abandon()
	select {
	case ok := <-accepted:
		if ok {
			t.Error("lost events count as written")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("who sends events waits on")
	}
	if l.Backend.ProcessEvents(event("c")) || len(asked) > 0 {
		t.Error("the webhook is asked again")
	}
	stop()
	if got := failures(t) - lost; got != 3 {
		t.Errorf("%v lost events are counted", got)
	}
}

// A log without a webhook has nothing to give up.
func TestAbandonOfAFile(t *testing.T) {
	l, stop := open(t, options(t, func(o *auditlog.Options) { o.Log.Path = t.TempDir() + "/audit.log" }), io.Discard)
	defer stop()
	l.Abandon()
	if !l.Backend.ProcessEvents(event("a")) {
		t.Error("an event is lost")
	}
}
