package webhook

import (
	"fmt"
	"sync"
	"sync/atomic"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/admission/state"
	"barque.dev/internal/store"
)

// configurations tells a stock plugin which webhook configurations there are. It looks at the image
// when a request comes in, so that a change is effective from the moment when the image holds it,
// and costs a comparison as long as nothing changes.
type configurations[T client.Object] struct {
	image    state.Image
	resource schema.GroupResource

	seen atomic.Pointer[seen]

	mu       sync.Mutex
	known    map[string]T // what the plugin has been told of, by name
	handlers []cache.ResourceEventHandler
}

// seen is what a plugin has been told of: the table at a revision, or why it can't be read.
type seen struct {
	revision int64
	err      error
}

// refresh tells the plugin of what changed, and whether there are any configurations. One that can't be
// read is an error: it might have said no.
func (c *configurations[T]) refresh() (some bool, err error) {
	table := c.image.Table(c.resource)
	if table == nil {
		return false, nil
	}
	revision, objects := table.Changed()
	now := c.seen.Load()
	if now == nil || now.revision != revision {
		now = c.catchUp(table, revision)
	}
	return objects > 0, now.err
}

func (c *configurations[T]) catchUp(table *store.Table, revision int64) *seen {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := &seen{revision: revision}
	next := make(map[string]T, len(c.known))
	table.Snapshot().Ascend("", store.Key{}, func(e *store.Entry) bool {
		obj, err := e.Object()
		configuration, ok := obj.(T)
		if err == nil && !ok {
			err = fmt.Errorf("it is a %T", obj)
		}
		if err != nil {
			now.err = fmt.Errorf("read %s %q: %w", c.resource, e.Key().Name, err)
			return false
		}
		next[e.Key().Name] = configuration
		return true
	})
	if now.err == nil {
		before := c.known
		c.known = next
		c.tell(before, next)
	}
	c.seen.Store(now)
	return now
}

// tell calls the plugin's handlers for the difference.
func (c *configurations[T]) tell(before, next map[string]T) {
	for _, handler := range c.handlers {
		for name, now := range next {
			was, existed := before[name]
			switch {
			case !existed:
				handler.OnAdd(now, false)
			case was.GetResourceVersion() != now.GetResourceVersion():
				handler.OnUpdate(was, now)
			}
		}
		for name, was := range before {
			if _, exists := next[name]; !exists {
				handler.OnDelete(was)
			}
		}
	}
}

// List implements the lister of the kind.
func (c *configurations[T]) List(selector labels.Selector) ([]T, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]T, 0, len(c.known))
	for _, configuration := range c.known {
		if selector.Matches(labels.Set(configuration.GetLabels())) {
			out = append(out, configuration)
		}
	}
	return out, nil
}

// Get implements the lister of the kind.
func (c *configurations[T]) Get(name string) (T, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if configuration, ok := c.known[name]; ok {
		return configuration, nil
	}
	var none T
	return none, apierrors.NewNotFound(c.resource, name)
}

// AddEventHandler implements cache.SharedIndexInformer.
func (c *configurations[T]) AddEventHandler(handler cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handlers = append(c.handlers, handler)
	for _, configuration := range c.known {
		handler.OnAdd(configuration, true)
	}
	return synced{}, nil
}
