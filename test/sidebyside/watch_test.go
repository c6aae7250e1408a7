package main

import (
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// impatient is a server of a hundred changes, at the revisions 1001 to 1100, that ends each watch after 40 events.
type impatient struct {
	mu    sync.Mutex
	asked []string // the revisions that watches were opened at
}

func (s *impatient) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	at := r.URL.Query().Get("resourceVersion")
	s.mu.Lock()
	s.asked = append(s.asked, at)
	s.mu.Unlock()
	since, err := strconv.Atoi(at)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for revision := since + 1; revision <= min(since+40, 1000+watchChanges); revision++ {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", ResourceVersion: strconv.Itoa(revision)}}
		raw, err := encode(pod, corev1.SchemeGroupVersion)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		if err := sendEvent(w, "MODIFIED", raw); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
}

func sendEvent(w io.Writer, kind string, object []byte) error {
	event, err := (&metav1.WatchEvent{Type: kind, Object: runtime.RawExtension{Raw: object}}).Marshal()
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(event))), event...))
	return err
}

// TestAWatchThatIsEndedGoesOn: whose watches are ended has not to send everything anew, or it would be measured at what
// no client asks of it.
func TestAWatchThatIsEndedGoesOn(t *testing.T) {
	s := &impatient{}
	server := httptest.NewServer(s)
	defer server.Close()
	c := &crowd{open: make(chan struct{}, 1)}
	var seen []int
	err := c.follow(t.Context(), &lean{http: server.Client(), url: server.URL}, "1000", func(change int) { seen = append(seen, change) })
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if want := []string{"1000", "1040", "1080"}; !slices.Equal(s.asked, want) {
		t.Errorf("watches were opened at %v, want %v", s.asked, want)
	}
	for i, change := range seen {
		if change != i {
			t.Fatalf("change %d came as number %d", change, i)
		}
	}
	if len(seen) != watchChanges || c.cut.Load() != 2 {
		t.Errorf("%d changes were seen, %d watches ended", len(seen), c.cut.Load())
	}
}

// TestAWatchEndsInAnError: that the server has forgotten the revision is no change.
func TestAWatchEndsInAnError(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := sendEvent(w, "ERROR", nil); err != nil {
			t.Error(err)
		}
	}))
	defer server.Close()
	c := &crowd{open: make(chan struct{}, 1)}
	if err := c.follow(t.Context(), &lean{http: server.Client(), url: server.URL}, "1", func(change int) { t.Errorf("change %d", change) }); err == nil {
		t.Error("it is passed over")
	}
}
